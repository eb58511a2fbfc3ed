"""How sure each round's measures are: intervals over the held-out prompts, paired with the starting policy's."""

import math
from collections.abc import Sequence

from pco.evaluation import metrics
from pco.evaluation.intervals import paired_interval
from pco.evaluation.metrics import TEXT, Row
from pco.models.sampling import GREEDY, SAMPLED
from pco.report.numbers import Interval

_GAINS = ("reward", "second_reward", "repetition", "length")


def against_start(rows: Sequence[Row], start: Sequence[Row]) -> dict[str, Interval]:
    """95 % intervals of one evaluation, named as in its summary.

    Of wins the share itself, of `drift` nats per token of human text, of all else the difference from the start.
    """
    texts = [row for row in rows if row["mode"] == TEXT and row["measure"] != "drift"]
    found = {"drift": metrics.drifts([*texts, *metrics.drift_rows(texts, start)])}
    for name in _GAINS:
        found[name] = metrics.gains(rows, start, measure=name)
        for mode in (GREEDY, SAMPLED):
            of_mode = [row for row in rows if row["mode"] == mode]
            found[f"{name}/{mode}"] = metrics.gains(of_mode, start, measure=name)
    for win in metrics.WINS:
        found[f"{win}_vs_start"] = metrics.by_prompt(rows, f"{win}_vs_start")
    drawn = {name: Interval(*paired_interval(values)[1:]) for name, values in found.items() if values}
    return {name: interval for name, interval in drawn.items() if math.isfinite(interval.low)}
