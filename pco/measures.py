"""What an evaluation measures: rows for the `evaluations` table, and their summary."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from pco.rewards.programs import repeated_share

Row = dict[str, Any]
Summary = dict[str, float]

GREEDY, SAMPLED, TEXT = "greedy", "sampled", "text"
DISTINCT_N = 2
REPETITION_N = 3


def completion_rows(candidates: Sequence[Row], rewards: Sequence[float]) -> list[Row]:
    """Reward, repetition and length of each completion; one without a finite reward has no row for it."""
    rows = []
    for candidate, reward in zip(candidates, rewards, strict=True):
        tokens = candidate["token_ids"]
        values = {"reward": reward, "repetition": repeated_share(tokens, REPETITION_N), "length": float(len(tokens))}
        if not math.isfinite(reward):
            del values["reward"]
        rows += [_row(measure, candidate, value) for measure, value in values.items()]
    return rows


def win_rows(measure: str, rows: Iterable[Row], against: Iterable[Row]) -> list[Row]:
    """1 where a completion's reward beats the other policy's for the same prompt, mode and sample; a tie is 0.5."""
    other = {_key(row): row["value"] for row in against if row["measure"] == "reward"}
    own = [row for row in rows if row["measure"] == "reward"]
    return [_row(measure, row, _win(row["value"], other[_key(row)])) for row in own if _key(row) in other]


def gains(
    rows: Iterable[Row], against: Iterable[Row] | None, *, measure: str = "reward", times: float = 1.0
) -> list[float]:
    """For each prompt, by how much its completions' mean of a measure is above `times` the other policy's.

    Only completions of which both policies have one; greedy and sampled ones weigh alike, as in `summarise`. The
    prompt is the unit, since its completions are alike. Without another policy, the mean itself.
    """
    other = {_key(row): times * row["value"] for row in against or () if row["measure"] == measure}
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        of_a_prompt = row["measure"] == measure and row["prompt_id"] is not None
        if of_a_prompt and (against is None or _key(row) in other):
            found[row["prompt_id"]][row["mode"]].append(row["value"] - other.get(_key(row), 0.0))
    return [fmean(map(fmean, by_mode.values())) for by_mode in found.values()]


def surprise(rows: Iterable[Row], against: Iterable[Row], *, times: float = 1.0) -> list[float]:
    """For each human text, by how many nats its surprise is above the other policy's at `times` its perplexity.

    All of them add up to more than 0 just when the ratio of the two perplexities is more than `times`.
    """
    texts = (row for row in rows if row["measure"] == "text_logprob")
    before = {(row["measure"], row["prompt_id"]): row["value"] for row in against if row["mode"] == TEXT}
    return [
        before["text_logprob", row["prompt_id"]]
        - row["value"]
        - math.log(times) * before["text_tokens", row["prompt_id"]]
        for row in texts
        if ("text_logprob", row["prompt_id"]) in before
    ]


def _win(own: float, other: float) -> float:
    return 0.5 if own == other else float(own > other)


def corpus_rows(candidates: Sequence[Row]) -> list[Row]:
    """distinct-n of all completions of a mode together: distinct n-grams / n-grams."""
    by_mode: dict[str, list[list[int]]] = defaultdict(list)
    for candidate in candidates:
        by_mode[candidate["mode"]].append(candidate["token_ids"])
    return [_row("distinct_2", {"mode": mode}, distinct(texts, DISTINCT_N)) for mode, texts in by_mode.items()]


def distinct(texts: Iterable[Sequence[int]], n: int) -> float:
    """Distinct n-grams over all n-grams of several texts (Li et al., arXiv 1510.03055); 0 when there are none."""
    grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def text_rows(prompt_ids: Sequence[str], logprobs: Iterable[tuple[float, int]]) -> list[Row]:
    """Log-probability (nats) and number of predicted tokens of each human text."""
    rows = []
    for prompt_id, (logprob, tokens) in zip(prompt_ids, logprobs, strict=True):
        where = {"mode": TEXT, "prompt_id": prompt_id}
        rows += [_row("text_logprob", where, logprob), _row("text_tokens", where, float(tokens))]
    return rows


def summarise(rows: Iterable[Row]) -> Summary:
    """Means by measure and mode, as `measure/mode`; `measure` alone weighs greedy and sampled alike.

    `perplexity` is that of all human texts together: exp(-log-probability / tokens).
    """
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        values[row["measure"], row["mode"]].append(row["value"])
    summary = {f"{measure}/{mode}": fmean(found) for (measure, mode), found in values.items() if mode != TEXT}
    for measure in {measure for measure, mode in values if mode != TEXT}:
        modes = [summary[f"{measure}/{mode}"] for mode in (GREEDY, SAMPLED) if f"{measure}/{mode}" in summary]
        summary[measure] = fmean(modes)
    logprobs, tokens = values["text_logprob", TEXT], values["text_tokens", TEXT]
    if sum(tokens):
        summary["perplexity"] = _exp(-sum(logprobs) / sum(tokens))
    return summary


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _key(row: Row) -> tuple[Any, ...]:
    return row["mode"], row["prompt_id"], row["sample"]


def _row(measure: str, where: Mapping[str, Any], value: float) -> Row:
    return {
        "measure": measure,
        "mode": where["mode"],
        "prompt_id": where.get("prompt_id"),
        "sample": where.get("sample"),
        "value": value,
    }
