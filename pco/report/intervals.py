"""Intervals of each round's metrics over the held-out prompts, paired with the starting policy's."""

import math
from collections.abc import Sequence

from pco.config.metrics import METRICS
from pco.evaluation import metrics
from pco.evaluation.differences import per_prompt_differences, per_prompt_means, per_text_drifts
from pco.evaluation.intervals import paired_interval
from pco.evaluation.rows import TEXT, EvaluationRow
from pco.models.sampling import GREEDY, SAMPLED
from pco.report.numbers import Interval


def against_start(rows: Sequence[EvaluationRow], start: Sequence[EvaluationRow]) -> dict[str, Interval]:
    """95 % intervals of one evaluation, named as in its summary.

    Of wins the share itself, of `drift` nats per token of human text, of all else the difference from the start.
    """
    texts = [row for row in rows if row["mode"] == TEXT and row["measure"] != "drift"]
    values = {"drift": per_text_drifts([*texts, *metrics.drift_rows(texts, start)])}
    controlled: dict[str, Interval] = {}
    for metric in METRICS:
        if metric.compared:
            values[metric.key] = per_prompt_differences(rows, start, metric=metric.key)
            for mode in (GREEDY, SAMPLED):
                of_mode = [row for row in rows if row["mode"] == mode]
                values[f"{metric.key}/{mode}"] = per_prompt_differences(of_mode, start, metric=metric.key)
        elif metric.paired and metric.shown and not metric.relative:
            values[metric.key] = per_prompt_differences(rows, start, metric=metric.key)
        elif metric.paired and metric.key.endswith("_vs_start"):
            values[metric.key] = per_prompt_means(rows, metric.key)
        elif metric.key.startswith("lc_") and (at_equal_length := metrics.length_controlled_interval(rows, metric.key)):
            controlled[metric.key] = Interval(*at_equal_length[1:])
    intervals = {name: Interval(*paired_interval(numbers)[1:]) for name, numbers in values.items() if numbers}
    intervals |= controlled
    return {name: interval for name, interval in intervals.items() if math.isfinite(interval.low)}
