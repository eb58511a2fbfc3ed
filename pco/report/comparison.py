"""Evaluations beside each other, as tables: what each says, and by how much the others differ from the first."""

from collections.abc import Mapping, Sequence
from math import nan

from pco.evaluation import compare, metrics
from pco.evaluation.metrics import Row
from pco.report import markdown, wording
from pco.report.cells import Cell, Column, Table

Evaluations = Mapping[str, Sequence[Row]]  # rows of the table `evaluations` by the policy's name


def as_markdown(evaluations: Evaluations, *, level: float = 0.95) -> str:
    """All tables, one below the other."""
    return "\n\n".join(map(markdown.table, tables(evaluations, level=level))) + "\n"


def tables(evaluations: Evaluations, *, level: float = 0.95) -> list[Table]:
    """The means of all, then the differences of each from the first.

    Raises BadInput when one of them shares no prompt with the first.
    """
    first, *others = evaluations
    return [_means(evaluations, level), *(_differences(evaluations, first, other, level) for other in others)]


def _means(evaluations: Evaluations, level: float) -> Table:
    found = [{line.measure: line for line in compare.means(rows, level=level)} for rows in evaluations.values()]
    rows = []
    for measure in dict.fromkeys(measure for lines in found for measure in lines):
        lines = [means.get(measure) for means in found]
        shown = [_interval(line.mean, line.low, line.high) if line else wording.ABSENT for line in lines]
        rows.append([measure, *shown])
    perplexities = [metrics.summarise(rows).get("perplexity", nan) for rows in evaluations.values()]
    rows.append(["perplexity of human text", *(wording.decimal(value, 1) for value in perplexities)])
    return Table(
        f"Means over prompts, {wording.percent(level, 0)} intervals",
        [Column("measure", number=False), *map(Column, evaluations)],
        [list(map(Cell, row)) for row in rows],
    )


def _differences(evaluations: Evaluations, first: str, other: str, level: float) -> Table:
    rows = [
        [
            line.measure,
            wording.count(line.prompts),
            _interval(line.mean, line.low, line.high, sign=True),
            wording.decimal(line.p),
            wording.decimal(line.detectable, 4),
        ]
        for line in compare.compare(evaluations[first], evaluations[other], level=level)
    ]
    interval = f"difference, {wording.percent(level, 0)} interval"
    return Table(
        f"{other} less {first}",
        [Column("measure", number=False), *map(Column, ("prompts", interval, "p", "detectable"))],
        [list(map(Cell, row)) for row in rows],
    )


def _interval(mean: float, low: float, high: float, *, sign: bool = False) -> str:
    number = wording.signed if sign else wording.decimal
    return f"{number(mean, 4)} ({number(low, 4)} to {number(high, 4)})"
