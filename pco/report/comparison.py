"""Evaluations beside each other, as tables: what each says, and by how much the others differ from the first."""

from collections.abc import Mapping, Sequence
from itertools import chain
from math import nan

from pco.evaluation import compare, metrics
from pco.evaluation.rows import EvaluationRow
from pco.report import markdown, wording
from pco.report.cells import Cell, Column, Table

Evaluations = Mapping[str, Sequence[EvaluationRow]]  # rows of the table `evaluations` by the policy's name


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
    shown: list[dict[str, str]] = []
    for policy_rows in evaluations.values():
        shown.append({mean.metric: _interval(mean) for mean in compare.means(policy_rows, level=level)})
    rows = [
        [metric, *(intervals.get(metric, wording.ABSENT) for intervals in shown)]
        for metric in dict.fromkeys(chain.from_iterable(shown))
    ]
    perplexities = [metrics.summarise(policy_rows).get("perplexity", nan) for policy_rows in evaluations.values()]
    rows.append(["perplexity of human text", *(wording.decimal(value, 1) for value in perplexities)])
    return Table(
        f"Means over prompts, {wording.percent(level, 0)} intervals",
        [Column("metric", number=False), *map(Column, evaluations)],
        [list(map(Cell, row)) for row in rows],
    )


def _differences(evaluations: Evaluations, first: str, other: str, level: float) -> Table:
    rows = [
        [
            line.metric,
            wording.count(line.prompts),
            _interval(line, sign=True),
            wording.decimal(line.p),
            wording.decimal(line.detectable, 4),
        ]
        for line in compare.compare(evaluations[first], evaluations[other], level=level)
    ]
    interval = f"difference, {wording.percent(level, 0)} interval"
    return Table(
        f"{other} less {first}",
        [Column("metric", number=False), *map(Column, ("prompts", interval, "p", "detectable"))],
        [list(map(Cell, row)) for row in rows],
    )


def _interval(line: compare.Mean | compare.Difference, *, sign: bool = False) -> str:
    number = wording.signed if sign else wording.decimal
    return f"{number(line.mean, 4)} ({number(line.low, 4)} to {number(line.high, 4)})"
