"""A data card: what a file holds, where it came from and what was left out, in Markdown beside it."""

from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path

from data import files
from data.importing import Imported, Outcome, Written
from data.labels import Notes

_QUANTILES = (("min", 0.0), ("10 %", 0.1), ("median", 0.5), ("90 %", 0.9), ("99 %", 0.99), ("max", 1.0))


def write(imported: Imported) -> list[Path]:
    """Write a card beside each output of an import; returns their paths."""
    paths = [written.path.with_suffix(".md") for written in imported.outputs]
    for path, written in zip(paths, imported.outputs, strict=True):
        files.write_text(path, text(imported, written))
    return paths


def text(imported: Imported, written: Written) -> str:
    """The card of one of the outputs. It says nothing of when or on which machine: equal imports, equal cards."""
    parts = [_origin(imported, written), _counts(imported), _lengths(written)]
    return "\n".join([f"# {written.path.name}\n", *parts])


def of_sources(sources: Mapping[str, tuple[Outcome, str]]) -> str:
    """The card of what a run was given: each source by its place in the config, and the digest of a local one."""
    parts = ["# Sources\n"]
    for place, (outcome, digest) in sources.items():
        facts = {**_source(outcome), "digest": digest}
        parts.append(f"## `{place}`\n\n{_table(('', ''), _said(facts))}")
        rows = [*_rows_in(outcome), ("rows out", f"{outcome.kept:,}"), *_dropped(outcome)]
        parts.append(_table(("", "rows"), rows))
    return "\n".join(parts)


def _source(outcome: Outcome) -> dict[str, str]:
    request = outcome.request
    return {
        "source": f"`{request.source}`",
        "split, subset": " ".join(filter(None, (request.split, request.subset))),
        "revision": request.revision or "",
        "commit": outcome.commit or "",
        "only the first rows": f"{request.limit:,}" if request.limit else "",
        "kind": request.kind,
        "shape": f"{outcome.shape.name}, from {', '.join(outcome.used)}",
        "columns mapped": ", ".join(f"{column} = {name}" for column, name in request.names.items()),
        "columns not used": ", ".join(outcome.unused),
        "columns ignored": ", ".join(request.ignored),
        "labels given": ", ".join(f"{meaning} = {value}" for value, meaning in request.coding.items()),
        "labels read": told_read(outcome),
        "pairs": request.pairs if outcome.shape.name == "ranked answers" else "",
        "agreement of annotators": told_agreement(outcome),
        "references": told_references(outcome.notes) if outcome.notes.references else "",
        "conversations": request.turns,
    }


def _said(facts: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(name, fact) for name, fact in facts.items() if fact]


def _origin(imported: Imported, written: Written) -> str:
    facts = {
        **_source(imported),
        "side of the split": _side(imported, written),
        "rows here": f"{written.rows:,}",
        "different prompts here": f"{len(written.prompts):,} (case and whitespace aside)",
        "longer answer chosen": told_longer(written),
    }
    return _table(("", ""), _said(facts))


def told_read(outcome: Outcome) -> str:
    """Which values of a label were read as what, and how often; empty where there are no labels."""
    _, *outputs = outcome.shape.needs if outcome.shape.kind == "preferences" else ("",)
    names = {"first": outputs[0], "second": outputs[1]} if len(outputs) > 1 else {}
    read = outcome.notes.read
    return ", ".join(
        f"{value} -> {names.get(meaning, meaning)}: {read[value, meaning]:,}" for value, meaning in sorted(read)
    )


def told_agreement(outcome: Outcome) -> str:
    """How often two annotators of a row say the same; empty where there is one."""
    notes = outcome.notes
    if not notes.vote_pairs:
        return ""
    return (
        f"{notes.agreeing / notes.vote_pairs:.1%} of {notes.vote_pairs:,} pairs of votes on the same row say the same"
    )


def told_notes(outcome: Outcome) -> list[str]:
    """What else was done with the rows, a line each."""
    notes = outcome.notes
    facts = [f"Answers left out {reason}: {count:,}" for reason, count in sorted(notes.left_out.items())]
    if notes.repeated:
        facts.append(f"Rows whose answers repeated the prompt, which was removed from both: {notes.repeated:,}")
    if notes.vote_pairs:
        facts.append(f"Agreement of annotators: {told_agreement(outcome)}")
    if notes.references:
        facts.append(f"References: {told_references(notes)}")
    return facts


def told_references(notes: Notes) -> str:
    """How many right answers are there, and how many are none."""
    none = [f"{name}: {notes.references[name]:,}" for name in ("NaN", "empty") if notes.references[name]]
    given = f"{notes.references['given']:,} of {notes.references.total():,} rows"
    return f"{given}; none where {', '.join(none)}" if none else given


def _side(imported: Imported, written: Written) -> str:
    share = imported.request.heldout_share
    if share is None:
        return ""
    return f"{'held out' if written is imported.outputs[1] else 'training'}, by prompt; share held out {share}"


def told_longer(written: Written) -> str:
    """How often the longer of two answers is the chosen one; empty when no two differ in length."""
    differing = written.longer_chosen + written.longer_rejected
    if not differing:
        return ""
    return f"{written.longer_chosen / differing:.1%} of {differing:,} pairs that differ in length"


def _counts(imported: Imported) -> str:
    outputs = [(str(written.path.name), f"{written.rows:,}") for written in imported.outputs]
    rows = [*_rows_in(imported), *outputs, *_dropped(imported)]
    return "## The import\n\n" + _table(("", "rows"), rows)


def _rows_in(outcome: Outcome) -> list[tuple[str, str]]:
    notes = outcome.notes
    rows = [("rows in", f"{outcome.rows_in:,}")]
    if outcome.considered != outcome.rows_in:
        rows.append(("pairs that they give, or rows without any", f"{outcome.considered:,}"))
    rows += [(f"answers left out {reason}", f"{count:,}") for reason, count in sorted(notes.left_out.items())]
    if notes.repeated:
        rows.append(("prompt removed from both answers", f"{notes.repeated:,}"))
    return rows


def _dropped(outcome: Outcome) -> list[tuple[str, str]]:
    return [(f"dropped: {reason}", f"{count:,}") for reason, count in outcome.dropped.items()]


def _lengths(written: Written) -> str:
    rows = [(column, *_quantiles(lengths)) for column, lengths in written.lengths.items()]
    return "## Lengths, characters\n\n" + _table(("", *(name for name, _ in _QUANTILES)), rows)


def _quantiles(lengths: "array[int]") -> list[str]:
    ordered = sorted(lengths)
    return [f"{ordered[round(share * (len(ordered) - 1))]:,}" for _, share in _QUANTILES]


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
