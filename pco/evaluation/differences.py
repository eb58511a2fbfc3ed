"""Numbers per prompt or human text: what an interval is made of (docs/evaluation.md)."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

from pco.evaluation.rows import TEXT, EvaluationRow, key


def per_prompt_means(rows: Iterable[EvaluationRow], metric: str) -> list[float]:
    """Each prompt's mean of a metric. Greedy and sampled completions weigh alike.

    Empty for a metric of all completions together.
    """
    return list(means_by_prompt(rows, metric).values())


def means_by_prompt(rows: Iterable[EvaluationRow], metric: str) -> dict[str, float]:
    """`per_prompt_means` by the prompts' ids."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["measure"] == metric and row["prompt_id"] is not None:
            values[row["prompt_id"]][row["mode"]].append(row["value"])
    return {prompt_id: fmean(map(fmean, by_mode.values())) for prompt_id, by_mode in values.items()}


def per_prompt_differences(
    rows: Iterable[EvaluationRow], against: Iterable[EvaluationRow], *, metric: str = "reward", times: float = 1.0
) -> list[float]:
    """For each prompt, by how much its completions' mean of a metric is above `times` the other policy's.

    Only completions of which both policies have one; greedy and sampled ones weigh alike, as in `summarise`. The
    prompt is the unit, since completions of one prompt are alike.
    """
    return list(differences_by_prompt(rows, against, metric=metric, times=times).values())


def differences_by_prompt(
    rows: Iterable[EvaluationRow], against: Iterable[EvaluationRow], *, metric: str, times: float = 1.0
) -> dict[str, float]:
    """`per_prompt_differences` by the prompts' ids."""
    excess = paired_rows(metric, metric, rows, against, lambda own, other: own - times * other)
    return means_by_prompt(excess, metric)


def paired_rows(
    name: str,
    metric: str,
    rows: Iterable[EvaluationRow],
    against: Iterable[EvaluationRow],
    value: Callable[[float, float], float],
) -> list[EvaluationRow]:
    """Rows called `name`: `value(own, other)` of a metric for each completion or text that both policies have."""
    others = {key(row): row["value"] for row in against if row["measure"] == metric}
    return [
        {**row, "measure": name, "value": value(row["value"], others[key(row)])}
        for row in rows
        if row["measure"] == metric and key(row) in others
    ]


def text_differences(
    rows: Iterable[EvaluationRow], against: Iterable[EvaluationRow], *, times: float = 1.0
) -> list[float]:
    """For each human text, by how many nats it is less likely than under the other policy at `times` its perplexity.

    Their sum is above 0 exactly when the ratio of the two perplexities is above `times`.
    """
    others = {(row["measure"], row["prompt_id"]): row["value"] for row in against if row["mode"] == TEXT}
    differences = []
    for row in rows:
        before = others.get(("text_logprob", row["prompt_id"]))
        if row["measure"] == "text_logprob" and before is not None:
            tokens = others["text_tokens", row["prompt_id"]]
            differences.append(before - row["value"] - math.log(times) * tokens)
    return differences


def per_text_drifts(rows: Sequence[EvaluationRow]) -> list[float]:
    """A number per human text whose mean is the drift of all texts as one.

    The exponential of that mean is the ratio of perplexities. Texts differ in length, so drift is a ratio of sums;
    each text counts for what it adds to it (the ratio estimator, Cochran 1977, section 6.3).
    """
    tokens = {row["prompt_id"]: row["value"] for row in rows if row["measure"] == "text_tokens"}
    drifts = [(row["value"], tokens[row["prompt_id"]]) for row in rows if row["measure"] == "drift"]
    if not drifts:
        return []
    total_tokens = sum(count for _, count in drifts)
    ratio = sum(value * count for value, count in drifts) / total_tokens
    mean_tokens = total_tokens / len(drifts)
    return [ratio + (value - ratio) * count / mean_tokens for value, count in drifts]


def drifts_by_text(rows: Sequence[EvaluationRow]) -> dict[str, float]:
    """The numbers of `per_text_drifts` by the text's id."""
    texts = [str(row["prompt_id"]) for row in rows if row["measure"] == "drift"]
    return dict(zip(texts, per_text_drifts(rows), strict=True))
