"""A reward's result on a public benchmark: tables for the terminal, and a page of Markdown."""

from pathlib import Path

from data import files, store
from pco.evaluation.reward_benchmark import Measured, Share, Subset, measured
from pco.report import markdown, wording
from pco.report.cells import Cell, Column, Table
from pco.runs.reward_benchmark import REPORT, TABLE


def read(folder: Path) -> Measured:
    """The result of a finished evaluation; raises CorruptArtifact when a table is not what its manifest says."""
    return measured(store.read_table(folder, TABLE).to_pylist())


def write(folder: Path, name: str) -> Path:
    """Write the page into the evaluation's folder and return its path."""
    manifest = store.read_manifest(folder)
    assert manifest is not None, "only a finished evaluation has a report"
    path = folder / REPORT
    parts = [f"# {markdown.escape(name)}", *sentences(manifest)]
    files.write_text(path, "\n\n".join([*parts, *map(markdown.table, tables(read(folder)))]) + "\n")
    return path


def sentences(manifest: store.Manifest) -> list[str]:
    """What was scored, what was left out, and what the intervals are."""
    data = ", ".join(f"{name} ({digest[:12]})" for name, digest in manifest.inputs.items())
    lines = [f"{manifest.rows_out:,} of {manifest.rows_in:,} prompts of {data}."]
    lines += [f"Left out: {many:,} prompts ({reason})." for reason, many in manifest.dropped.items()]
    lines.append(
        "Intervals are of 95 %, over prompts: Wilson's of accuracies, Student's of the score of Ties. A tie of a pair "
        "counts half, and all prompts of a subset weigh the same."
    )
    return lines


def tables(result: Measured) -> list[Table]:
    """Accuracies by subset, then what the reward is drawn to."""
    return [_accuracies(result), _bias(result)]


def _accuracies(result: Measured) -> Table:
    rows = [_accuracy(subset) for subset in (*result.subsets, result.all)]
    if any(subset.best or subset.ties for subset in result.subsets):
        absent = Cell(wording.ABSENT)
        mean = Cell(wording.percent(result.mean_of_subsets))
        rows.append([Cell("mean of subsets"), absent, absent, absent, mean, absent])
    return Table(
        "How often the right answer has the higher reward; the score of a subset is that of RewardBench 2",
        [
            Column("Subset", number=False),
            Column("Prompts"),
            Column("Pairs", "right above wrong, a tie a half"),
            Column("95 %"),
            Column("Score", "best of several answers; of Ties their own"),
            Column("95 %"),
        ],
        rows,
    )


def _accuracy(subset: Subset) -> list[Cell]:
    name = f"{subset.name} (best of {subset.answers})" if subset.answers else subset.name
    of_subset = subset.ties or subset.best
    cells = [Cell(name), Cell(wording.count(subset.pairs.prompts)), *_shown(subset.pairs)]
    return [*cells, *(_shown(of_subset) if of_subset else [Cell(wording.ABSENT)] * 2)]


def _shown(share: Share) -> list[Cell]:
    return [Cell(wording.percent(share.mean)), Cell(f"{wording.percent(share.low)} to {wording.percent(share.high)}")]


def _bias(result: Measured) -> Table:
    bias = result.bias
    shares = {
        "Right answer longer: accuracy": bias.longer,
        "Right answer shorter: accuracy": bias.shorter,
        "Equally long: accuracy": bias.equal,
        "Verdict follows the position": bias.follows_position,
    }
    rows = [
        [Cell(name), Cell(wording.count(share.prompts)), *_shown(share)]
        for name, share in shares.items()
        if share is not None
    ]
    if bias.prefers_first is not None:
        share = Cell(wording.percent(bias.prefers_first))
        rows.append([Cell("Decided verdicts for the first answer"), Cell(wording.ABSENT), share, Cell(wording.ABSENT)])
    return Table(
        "What the reward is drawn to; length in characters, the position of a judge's two answers",
        [Column("Of pairs", number=False), Column("Prompts"), Column("Share"), Column("95 %")],
        rows,
    )
