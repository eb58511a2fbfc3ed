"""The data that a config names, read from files or from where they are."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from data import card, files, mixing, readers
from data.detecting import Kind
from data.errors import BadInput
from data.importing import Outcome, Request, told
from data.labels import References
from data.mixing import Part
from data.prompts import Prompt, asked
from data.rows import UserFeedback, UserPreference
from pco.config.prompts import DataSource, sources_of
from pco.config.run import RunConfig
from pco.stage import Stage

Row = TypeVar("Row")
CARD = "sources.md"  # in the folder of the stage that read them
_IN_A_CONFIG = "In a config, --map a=b is `map: {a: b}`, and so are `labels`, `ignore` and `split` keys of the source."


@dataclass(frozen=True)
class Read(Generic[Row]):
    """The rows of a setting; by its place in the config, what became of the rows of each source."""

    rows: list[Row]
    sources: Mapping[str, Outcome] = field(default_factory=dict)  # none where a path is named
    references: Mapping[References, int] = field(default_factory=dict)  # right answers in a file, by what they are


def heldout(config: RunConfig) -> Read[readers.Row]:
    """The held-out prompts, without those that are set aside for the test. Raises BadInput."""
    read = prompts(config, "heldout", limit=config.prompts.heldout_limit)
    share = config.prompts.test_share
    return read if share is None else _of_share(read, share, set_aside=False)


def test(config: RunConfig) -> Read[readers.Row]:
    """The test prompts, if there are any. Raises BadInput."""
    if not config.prompts.has_test:
        return Read([])
    share = config.prompts.test_share
    if share is None:
        return prompts(config, "test", limit=None)
    return _of_share(prompts(config, "heldout", limit=config.prompts.heldout_limit), share, set_aside=True)


def _of_share(read: Read[readers.Row], share: float, *, set_aside: bool) -> Read[readers.Row]:
    rows = [row for row in read.rows if is_set_aside(asked(row), share) == set_aside]
    if not rows:
        raise BadInput(
            f"prompts.test_share: a share of {share:g} of {len(read.rows):,} held-out prompts leaves none "
            f"{'for the test' if set_aside else 'to decide by'}. "
            f"{'Raise' if set_aside else 'Lower'} it, or name more held-out prompts."
        )
    reason = "held out" if set_aside else "set aside for the test"
    left_out = {reason: len(read.rows) - len(rows)}
    sources = {
        "test" if set_aside else place: replace(outcome, dropped=outcome.dropped | left_out)
        for place, outcome in read.sources.items()
    }
    return Read(rows, sources, read.references)


def is_set_aside(prompt: Prompt, share: float) -> bool:
    """Whether a held-out prompt is a test prompt.

    By a hash of what it asks, case and white space aside: a file that grows keeps its split, and no prompt is on both
    sides. The hash is another one than that of `pco data import --heldout`, whose held-out side would all be alike.
    """
    digest = hashlib.sha256(b"test" + readers.prompt_key(prompt)).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def prompts(config: RunConfig, name: str, *, limit: int | None) -> Read[readers.Row]:
    """The prompts of the setting `train`, `heldout` or `test`, the first so many of them. Raises BadInput."""
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
    value = getattr(config.prompts, name)
    named = sources_of(name, value)
    parts = [Part(source.request(kind), source.weight) for source in named.values()]
    try:
        if isinstance(value, DataSource):
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
    place_of = [request.source, request.split, request.subset and f"subset {request.subset}"]
    commit = f" at commit {outcome.commit}" if outcome.commit else ""
    dropped = f", dropped {told(outcome.dropped)}" if outcome.dropped else ""
    labels = card.told_read(outcome)
    facts = [*([f"read {labels}"] if labels else []), *card.told_notes(outcome)]
    return (
        f"prompts.{place}: {', '.join(filter(None, place_of))}{commit}: {outcome.kept:,} of {outcome.considered:,} "
        f"rows, from {' + '.join(outcome.used)}{dropped}{''.join(f'; {fact}' for fact in facts)}"
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


def dropped(sources: Mapping[str, Outcome]) -> dict[str, int]:
    """How many rows of all sources were left out, by setting and reason."""
    counts: Counter[str] = Counter()
    for place, outcome in sources.items():
        counts.update({f"{place.partition('.')[0]}: {reason}": many for reason, many in outcome.dropped.items()})
    return dict(counts)


def recorded(sources: Mapping[str, Outcome], stage: Stage) -> dict[str, str]:
    """What became of the rows of each source, as JSON for the manifest; beside it a data card tells it to people.

    Of a source on this machine, the digest of its content is told, too.
    """
    if not sources:
        return {}
    local = {place for place, outcome in sources.items() if Path(outcome.request.source).is_absolute()}
    digests = {place: stage.inputs[place].fingerprint for place in local}
    by_setting = {f"prompts.{place}": (outcome, digests.get(place, "")) for place, outcome in sources.items()}
    files.write_text(stage.folder / CARD, card.of_sources(by_setting))
    return {
        "sources": json.dumps([{**record(place, of), "digest": digests.get(place)} for place, of in sources.items()])
    }
