"""A judge's word on a policy as a table, and what it does not say."""

from pathlib import Path

from data import store
from pco.evaluation.judgements import followed_position, rates
from pco.report import wording
from pco.report.cells import Cell, Column, Table
from pco.runs.judgements import TABLE


def table(folder: Path, *, level: float = 0.95) -> Table:
    """The win rates of finished judgements, with their intervals over prompts."""
    rows = store.read_table(folder, TABLE).to_pylist()
    manifest = store.read_manifest(folder)
    judge = manifest.settings["judge"] if manifest else None
    five_way = isinstance(judge, dict) and judge.get("verdicts") == "five"
    return Table(
        f"Wins of {len(rows):,} prompts; a tie is half a win",
        [Column("Rate", number=False), Column("Share"), Column(f"{100 * level:.4g} %")],
        [
            [
                Cell(found.name),
                Cell(wording.percent(found.rate)),
                Cell(f"{wording.percent(found.low)} to {wording.percent(found.high)}"),
            ]
            for found in rates(rows, five_way=five_way, level=level)
        ],
    )


def sentences(folder: Path) -> list[str]:
    """What was left out, and how far the judge went by the position."""
    manifest = store.read_manifest(folder)
    assert manifest is not None, "only finished judgements have a report"
    lines = [f"Left out: {many:,} prompts ({reason})." for reason, many in manifest.dropped.items()]
    followed = followed_position(store.read_table(folder, TABLE).to_pylist())
    if followed is not None:
        lines.append(f"Verdicts that follow the position: {wording.percent(followed)}.")
    if cost := manifest.metrics.get("judge_cost"):
        lines.append(f"Cost by the prices given: {cost:,.4g}.")
    return lines
