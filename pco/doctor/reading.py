"""The data that a config names, read from files or from where they are."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from data import card, mixing, readers
from data.detecting import Kind
from data.errors import BadInput
from data.importing import Outcome, Request, told
from data.labels import References
from data.mixing import Part
from data.rows import UserFeedback, UserPreference
from pco.config.prompts import DataSource
from pco.config.run import RunConfig

Row = TypeVar("Row")
_IN_A_CONFIG = "In a config, --map a=b is `map: {a: b}`, and so are `labels`, `ignore` and `split` keys of the source."


@dataclass(frozen=True)
class Read(Generic[Row]):
    """The rows of a setting; by its place in the config, what became of the rows of each source."""

    rows: list[Row]
    sources: Mapping[str, Outcome] = field(default_factory=dict)  # none where a path is named
    references: Mapping[References, int] = field(default_factory=dict)  # right answers in a file, by what they are


def prompts(config: RunConfig, name: str, *, limit: int | None) -> Read[readers.Row]:
    """The prompts of the setting `train` or `heldout`, the first so many of them. Raises BadInput."""
    value = getattr(config.prompts, name)
    if isinstance(value, str):
        references: Counter[References] = Counter()
        rows = readers.read_jsonl(Path(value), key="prompt", limit=limit, references=references)
        return Read(rows, references=references)
    read, outcomes = _sources(config, name, "prompts", limit)
    return Read([readers.of_imported_prompt(row) for row in read], outcomes)


def preferences(config: RunConfig) -> Read[UserPreference]:
    """The seed preferences, if there are any. Raises BadInput."""
    match config.prompts.preferences:
        case None:
            return Read([])
        case str(path):
            return Read(readers.read_preferences(Path(path)))
    read, outcomes = _sources(config, "preferences", "preferences")
    return Read([readers.of_imported_preference(row) for row in read], outcomes)


def feedback(config: RunConfig) -> Read[UserFeedback]:
    """The unpaired feedback, if there is any. Raises BadInput."""
    match config.prompts.feedback:
        case None:
            return Read([])
        case str(path):
            return Read(readers.read_feedback(Path(path)))
    read, outcomes = _sources(config, "feedback", "feedback")
    return Read([readers.of_imported_feedback(row) for row in read], outcomes)


def _sources(
    config: RunConfig, name: str, kind: Kind, limit: int | None = None
) -> tuple[list[mixing.Row], dict[str, Outcome]]:
    named = config.prompts.named()[name]
    parts = [Part(source.request(kind), source.weight) for source in named.values()]
    try:
        if isinstance(getattr(config.prompts, name), DataSource):
            rows, outcome = mixing.read(parts[0].request, limit)
            outcomes = [outcome]
        else:
            rows, outcomes = mixing.mix(parts, config.seed, limit)
    except BadInput as fault:
        hint = f" {_IN_A_CONFIG}" if " --" in str(fault) else ""
        raise BadInput(f"prompts.{name}: {fault}{hint}") from fault
    return rows, dict(zip(named, outcomes, strict=True))


def told_source(place: str, outcome: Outcome) -> str:
    """What became of the rows of a source, in one line."""
    request = outcome.request
    asked = [request.source, request.split, request.subset and f"subset {request.subset}"]
    commit = f" at commit {outcome.commit}" if outcome.commit else ""
    dropped = f", dropped {told(outcome.dropped)}" if outcome.dropped else ""
    labels = card.told_read(outcome)
    facts = [*([f"read {labels}"] if labels else []), *card.told_notes(outcome)]
    return (
        f"prompts.{place}: {', '.join(filter(None, asked))}{commit}: {outcome.kept:,} of {outcome.considered:,} rows, "
        f"from {' + '.join(outcome.used)}{dropped}{''.join(f'; {fact}' for fact in facts)}"
    )


def unpinned(outcome: Outcome) -> bool:
    """Whether a data set of the hub may have other rows tomorrow: its `revision` is no commit."""
    return outcome.commit is not None and outcome.commit != outcome.request.revision


def record(place: str, outcome: Outcome) -> dict[str, Any]:
    """What became of the rows of a source, as JSON values for a manifest."""
    request: Request = outcome.request
    return {
        "setting": f"prompts.{place}",
        "dataset": request.source,
        "name": request.subset,
        "split": request.split,
        "revision": request.revision,
        "commit": outcome.commit,
        "rows_in": outcome.considered,
        "rows_out": outcome.kept,
        "dropped": outcome.dropped,
        "references": dict(outcome.notes.references),
    }
