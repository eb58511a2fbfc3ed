"""Two policies side by side: differences paired by the held-out prompts that both answered, and how sure they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from data.errors import BadInput
from pco.config.gate import TASK
from pco.evaluation import metrics
from pco.evaluation.intervals import adjusted, detectable_difference, paired_interval, sign_test
from pco.evaluation.metrics import Row

MEASURES = ("reward", "second_reward", "f1", "repetition", "length", "entropy")


@dataclass(frozen=True)
class Mean:
    """A measure's mean over prompts and its interval."""

    measure: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Of one measure, second policy less first: mean over prompts, its interval, and what could have been found.

    `p` is the sign test's, corrected for the number of measures (Holm); `detectable` the smallest true difference that
    so many prompts find four times out of five.
    """

    measure: str
    prompts: int
    first: float
    second: float
    mean: float
    low: float
    high: float
    p: float
    detectable: float


def means(rows: Sequence[Row], *, level: float = 0.95) -> list[Mean]:
    """What one evaluation says, measure by measure."""
    found = {name: metrics.by_prompt(rows, name) for name in _names(rows)}
    return [Mean(name, *paired_interval(values, level=level)) for name, values in found.items() if values]


def compare(first: Sequence[Row], second: Sequence[Row], *, level: float = 0.95) -> list[Difference]:
    """The rows of two evaluations, measure by measure; `win` is the share of completions with more reward than first's.

    Raises BadInput when they share no prompt.
    """
    paired = {name: metrics.gains(second, first, measure=name) for name in _names(second)}
    paired = {name: found for name, found in paired.items() if found}
    if not paired:
        raise BadInput("The two evaluations share no held-out prompt, so nothing can be compared.")
    before, after = metrics.summarise(first), metrics.summarise(second)
    for win, score in metrics.WINS.items():
        if wins := metrics.by_prompt(metrics.win_rows(win, second, first, by=score), win):
            paired[win], before[win], after[win] = [won - 0.5 for won in wins], 0.5, fmean(wins)
    corrected = adjusted([sign_test(found) for found in paired.values()])
    lines = []
    for (name, found), p in zip(paired.items(), corrected, strict=True):
        mean, low, high = paired_interval(found, level=level)
        spread = stdev(found) if len(found) > 1 else float("inf")
        least = detectable_difference(spread, len(found), level=level)
        lines.append(Difference(name, len(found), before[name], after[name], mean, low, high, p, least))
    return lines


def _names(rows: Sequence[Row]) -> list[str]:
    """The common measures, then the tasks in the order of the rows."""
    return [*MEASURES, *dict.fromkeys(row["measure"] for row in rows if row["measure"].startswith(TASK))]
