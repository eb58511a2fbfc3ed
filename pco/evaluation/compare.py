"""Two policies side by side: differences paired by the held-out prompts that both answered, with their intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from data.errors import BadInput
from pco.config.metrics import METRICS, TASK
from pco.evaluation import metrics
from pco.evaluation.differences import per_prompt_differences, per_prompt_means
from pco.evaluation.intervals import adjusted, detectable_difference, paired_interval, sign_test
from pco.evaluation.rows import EvaluationRow


@dataclass(frozen=True)
class Mean:
    """A metric's mean over prompts and its interval."""

    metric: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Of one metric, second policy minus first: mean over prompts, its interval, and what could have been found.

    `p` is the sign test's, corrected for the number of metrics (Holm); `detectable` the smallest true difference that
    so many prompts find four times out of five.
    """

    metric: str
    prompts: int
    first: float
    second: float
    mean: float
    low: float
    high: float
    p: float
    detectable: float


def means(rows: Sequence[EvaluationRow], *, level: float = 0.95) -> list[Mean]:
    """What one evaluation says, metric by metric."""
    values = {name: per_prompt_means(rows, name) for name in _names(rows)}
    return [Mean(name, *paired_interval(of_metric, level=level)) for name, of_metric in values.items() if of_metric]


def compare(
    first: Sequence[EvaluationRow], second: Sequence[EvaluationRow], *, level: float = 0.95
) -> list[Difference]:
    """Two evaluations, metric by metric; `win` is the share of completions with more reward than the first's.

    Raises BadInput when they share no prompt.
    """
    differences = {name: per_prompt_differences(second, first, metric=name) for name in _names(second)}
    differences = {name: values for name, values in differences.items() if values}
    if not differences:
        raise BadInput("The two evaluations share no held-out prompt, so nothing can be compared.")
    before, after = metrics.summarise(first), metrics.summarise(second)
    for win, score in metrics.WINS.items():
        rates = per_prompt_means(metrics.win_rows(win, second, first, by=score), win)
        if rates:
            differences[win] = [rate - 0.5 for rate in rates]
            before[win], after[win] = 0.5, fmean(rates)
    p_values = adjusted([sign_test(values) for values in differences.values()])
    lines = []
    for (name, values), p in zip(differences.items(), p_values, strict=True):
        mean, low, high = paired_interval(values, level=level)
        deviation = stdev(values) if len(values) > 1 else float("inf")
        detectable = detectable_difference(deviation, len(values), level=level)
        lines.append(Difference(name, len(values), before[name], after[name], mean, low, high, p, detectable))
    return lines


def _names(rows: Sequence[EvaluationRow]) -> list[str]:
    """The metrics that are compared, then the tasks in the order of the rows."""
    tasks = dict.fromkeys(row["measure"] for row in rows if row["measure"].startswith(TASK))
    return [*(metric.key for metric in METRICS if metric.compared), *tasks]
