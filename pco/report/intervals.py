"""How sure each round's measures are: intervals over the held-out prompts, paired with the starting policy's."""

import math
from collections.abc import Sequence

from pco import measures
from pco.measures import GREEDY, SAMPLED, TEXT, Row
from pco.report.numbers import Interval
from pco.statistics import paired_interval

_GAINS = ("reward", "second_reward", "repetition", "length")


def against_start(rows: Sequence[Row], start: Sequence[Row]) -> dict[str, Interval]:
    """95 % intervals of one evaluation, named as in its summary.

    Of wins the share itself, of `drift` nats per token of human text, of all else the difference from the start.
    """
    texts = [row for row in rows if row["mode"] == TEXT and row["measure"] != "drift"]
    found = {"drift": measures.drifts([*texts, *measures.drift_rows(texts, start)])}
    for name in _GAINS:
        found[name] = measures.gains(rows, start, measure=name)
        for mode in (GREEDY, SAMPLED):
            of_mode = [row for row in rows if row["mode"] == mode]
            found[f"{name}/{mode}"] = measures.gains(of_mode, start, measure=name)
    for win in measures.WINS:
        found[f"{win}_vs_start"] = measures.by_prompt(rows, f"{win}_vs_start")
    drawn = {name: Interval(*paired_interval(values)[1:]) for name, values in found.items() if values}
    return {name: interval for name, interval in drawn.items() if math.isfinite(interval.low)}
