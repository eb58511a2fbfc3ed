"""The best policy against the starting one on the test prompts, metric by metric."""

import math
from collections.abc import Sequence

from data.errors import BadInput
from data.rows import FinalTestRow
from pco.config.metrics import METRICS
from pco.evaluation import metrics
from pco.evaluation.differences import per_prompt_differences, per_prompt_means
from pco.evaluation.intervals import paired_interval
from pco.evaluation.rows import EvaluationRow

_EVEN = 0.5  # the win rate of a policy against itself
_PREVIOUS, _START = "_vs_previous", "_vs_start"


def differences(start: Sequence[EvaluationRow], best: Sequence[EvaluationRow]) -> list[FinalTestRow]:
    """Each metric that both evaluations have, and by how much the best policy's is higher, with its 95 % interval.

    Of wins against the start it is the share less a half. In a test nothing but the start comes before the best policy.

    Raises BadInput when they share no prompt.
    """
    before, after = metrics.summarise(start), metrics.summarise(best)
    rows: list[FinalTestRow] = []
    for metric in METRICS:
        if metric.key not in after or metric.key.endswith(_PREVIOUS):
            continue
        if metric.key.endswith(_START):
            rows.append(_wins(metric.key, best, after[metric.key]))
        elif metric.key == "kl":
            values = per_prompt_means(best, "kl")
            rows.append(_row("kl", len(values), 0.0, after["kl"], _interval(values)))
        elif metric.key in before:
            values = per_prompt_differences(best, start, metric=metric.key) if metric.paired else []
            rows.append(_row(metric.key, len(values), before[metric.key], after[metric.key], _interval(values)))
    if not any(row["prompts"] for row in rows):
        raise BadInput("The two evaluations share no test prompt, so nothing can be compared.")
    return rows


def _wins(key: str, best: Sequence[EvaluationRow], rate: float) -> FinalTestRow:
    rates = per_prompt_means(best, key.removeprefix("lc_"))
    interval = metrics.length_controlled_interval(best, key) if key.startswith("lc_") else paired_interval(rates)
    low, high = interval[1:] if interval else (math.nan, math.nan)
    return _row(key, len(rates), _EVEN, rate, (low - _EVEN, high - _EVEN))


def _interval(values: Sequence[float]) -> tuple[float, float]:
    return paired_interval(values)[1:] if values else (math.nan, math.nan)


def _row(metric: str, prompts: int, start: float, best: float, interval: tuple[float, float]) -> FinalTestRow:
    low, high = (end if math.isfinite(end) else None for end in interval)
    return {
        "metric": metric,
        "prompts": prompts,
        "start": start,
        "best": best,
        "difference": best - start,
        "low": low,
        "high": high,
    }


def of_rule(metric: str) -> str:
    """The metric of a test that answers to a rule: wins against the start for those against the previous."""
    return metric.replace(_PREVIOUS, _START)
