"""What an evaluation measures: the rows of the table `evaluations`, and their summary (docs/evaluation.md).

`pco.config.metrics` lists what there is.
"""

import math
import re
import string
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from data import store
from pco.evaluation.differences import paired_rows, per_text_drifts
from pco.evaluation.length_control import Games, controlled_interval, controlled_rate
from pco.evaluation.rows import (
    TEXT,
    CandidateRow,
    CompletionKey,
    EvaluationRow,
    Summary,
    key,
    of_completion,
    of_text,
)
from pco.models.sampling import GREEDY, SAMPLED
from pco.rewards.programs import repeated_share

REPETITION_N = {"repetition": 3, "repetition_4": 4}
DISTINCT_N = (1, 2, 3)
BEST_OF_N = {"reward": "best_of_n", "second_reward": "second_best_of_n"}
WINS = {"win": "reward", "second_win": "second_reward"}  # the metric by which each kind of win is decided

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, " "))


def read(folder: Path) -> list[EvaluationRow]:
    """The rows of a finished evaluation, and those that follow from them (`with_best_of_n`)."""
    rows: list[EvaluationRow] = store.read_table(folder, "evaluations").to_pylist()
    return with_best_of_n(rows)


def with_best_of_n(rows: Sequence[EvaluationRow]) -> list[EvaluationRow]:
    """The rows, and for each prompt with several samples the rewards of the sample that the first reward prefers.

    They follow from the others and stand in no table. n is the largest number of samples with a reward that a prompt
    has; prompts with fewer have no such row, since the best of fewer is worse. Of samples that are preferred alike it
    is the mean.
    """
    values: dict[str, dict[str, dict[int | None, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row["measure"] in BEST_OF_N and row["mode"] == SAMPLED and row["prompt_id"] is not None:
            values[row["measure"]][row["prompt_id"]][row["sample"]] = row["value"]
    n = max(map(len, values["reward"].values()), default=0)
    best: list[EvaluationRow] = []
    for prompt, rewards in values["reward"].items():
        preferred = [sample for sample, reward in rewards.items() if reward == max(rewards.values())]
        for measure, name in BEST_OF_N.items():
            found = [value for sample in preferred if (value := values[measure][prompt].get(sample)) is not None]
            if len(rewards) == n > 1 and len(found) == len(preferred):
                best.append(
                    {"measure": name, "mode": SAMPLED, "prompt_id": prompt, "sample": None, "value": fmean(found)}
                )
    return [*rows, *best]


def completion_rows(
    candidates: Sequence[CandidateRow],
    rewards: Sequence[float],
    *,
    second_rewards: Sequence[float] | None = None,
    references: Mapping[str, str] | None = None,
) -> list[EvaluationRow]:
    """What is measured of each completion alone. What is not a finite number, such as a missing reward, has no row.

    `references` are reference answers by prompt id.
    """
    rows = []
    for i, candidate in enumerate(candidates):
        values = {"reward": rewards[i]}
        if second_rewards is not None:
            values["second_reward"] = second_rewards[i]
        values |= _values(candidate, (references or {}).get(candidate["prompt_id"]))
        rows += [of_completion(name, candidate, value) for name, value in values.items() if math.isfinite(value)]
    return rows


def _values(candidate: CandidateRow, reference: str | None) -> dict[str, float]:
    tokens = candidate["token_ids"]
    values = {name: repeated_share(tokens, n) for name, n in REPETITION_N.items()}
    values["length"] = float(len(tokens))
    if tokens and candidate["mode"] == SAMPLED:
        values["entropy"] = -candidate["logprob"] / len(tokens)
    if reference is not None:
        values["f1"] = f1(candidate["completion"], reference)
    return values


def f1(completion: str, reference: str) -> float:
    """Harmonic mean of precision and recall of words, each counted as often as it occurs; 0 without a common one.

    Words as ParlAI has them (arXiv 1705.06476): without case, punctuation and articles.
    """
    own, other = _words(completion), _words(reference)
    common = (own & other).total()
    return 2 * common / (own.total() + other.total()) if common else 0.0


def _words(text: str) -> Counter[str]:
    return Counter(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def rows_against(name: str, rows: Sequence[EvaluationRow], against: Sequence[EvaluationRow]) -> list[EvaluationRow]:
    """Completions beside another policy's for the same prompt, mode and sample: `win_vs_NAME`, `length_vs_NAME`, ...

    A win is 1 where a completion's reward is higher, a tie 0.5. A length is by how many tokens it is longer.
    """
    compared = paired_rows(f"length_vs_{name}", "length", rows, against, lambda own, other: own - other)
    for win, score in WINS.items():
        compared += win_rows(f"{win}_vs_{name}", rows, against, by=score)
    return compared


def win_rows(
    name: str, rows: Iterable[EvaluationRow], against: Iterable[EvaluationRow], *, by: str = "reward"
) -> list[EvaluationRow]:
    """1 where a completion's score beats the other policy's for the same prompt, mode and sample; a tie is 0.5."""
    return paired_rows(name, by, rows, against, _win)


def _win(own: float, other: float) -> float:
    return 0.5 if own == other else float(own > other)


def reference_rows(rows: Iterable[EvaluationRow], values: Mapping[tuple[str, str], float]) -> list[EvaluationRow]:
    """The reference answers as the opponents of all completions; `values` are theirs by metric and prompt id."""
    opponents: list[EvaluationRow] = []
    for row in rows:
        value = values.get((row["measure"], row["prompt_id"] or ""), math.nan)
        if math.isfinite(value):
            opponents.append({**row, "value": value})
    return opponents


def corpus_rows(candidates: Sequence[CandidateRow]) -> list[EvaluationRow]:
    """distinct-n of all completions of a mode together: distinct n-grams / n-grams."""
    by_mode: dict[str, list[list[int]]] = defaultdict(list)
    for candidate in candidates:
        by_mode[candidate["mode"]].append(candidate["token_ids"])
    rows: list[EvaluationRow] = []
    for mode, completions in by_mode.items():
        for n in DISTINCT_N:
            share = distinct(completions, n)
            rows.append({"measure": f"distinct_{n}", "mode": mode, "prompt_id": None, "sample": None, "value": share})
    return rows


def distinct(completions: Iterable[Sequence[int]], n: int) -> float:
    """Distinct n-grams over all n-grams of several completions (Li et al., arXiv 1510.03055); 0 if there are none."""
    grams: list[tuple[int, ...]] = []
    for tokens in completions:
        grams += [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def text_rows(prompt_ids: Sequence[str], logprobs: Iterable[tuple[float, int]]) -> list[EvaluationRow]:
    """Log-probability (nats) and number of predicted tokens of each human text."""
    rows = []
    for prompt_id, (logprob, tokens) in zip(prompt_ids, logprobs, strict=True):
        rows += [of_text("text_logprob", prompt_id, logprob), of_text("text_tokens", prompt_id, float(tokens))]
    return rows


def drift_rows(rows: Sequence[EvaluationRow], start: Iterable[EvaluationRow]) -> list[EvaluationRow]:
    """By how much each human text became less likely than under the starting policy, nats per token."""
    tokens = {key(row): row["value"] for row in rows if row["measure"] == "text_tokens"}
    losses = paired_rows("drift", "text_logprob", rows, start, lambda now, before: before - now)
    return [{**row, "value": row["value"] / tokens[key(row)]} for row in losses if math.isfinite(row["value"])]


def kl_row(start: CandidateRow, logprob: float) -> EvaluationRow:
    """By how much a completion that the starting policy sampled became less likely since, nats per token.

    Its mean estimates KL(start || policy) per token where the temperature is 1 (docs/evaluation.md).
    """
    return of_completion("kl", start, (start["logprob"] - logprob) / len(start["token_ids"]))


def summarise(rows: Iterable[EvaluationRow]) -> Summary:
    """Means by metric and mode, as `metric/mode`; `metric` alone weighs greedy and sampled alike.

    `perplexity` is that of all human texts together: exp(-log-probability / tokens), `drift` is its logarithm minus the
    starting policy's, and `lc_win_vs_NAME` a win rate at equal length.
    """
    rows = list(rows)
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        values[row["measure"], row["mode"]].append(row["value"])
    summary = {f"{metric}/{mode}": fmean(of_mode) for (metric, mode), of_mode in values.items() if mode != TEXT}
    summary |= _length_controlled(rows)
    for metric in {name.partition("/")[0] for name in summary}:
        modes = [summary[f"{metric}/{mode}"] for mode in (GREEDY, SAMPLED) if f"{metric}/{mode}" in summary]
        summary[metric] = fmean(modes)
    logprobs, tokens = values["text_logprob", TEXT], values["text_tokens", TEXT]
    if sum(tokens):
        summary["perplexity"] = _exp(-sum(logprobs) / sum(tokens))
    drifts = per_text_drifts(rows)
    if drifts:
        summary["drift"] = fmean(drifts)
    return summary


def _length_controlled(rows: Sequence[EvaluationRow]) -> Summary:
    """`lc_win_vs_NAME/mode` for all win rates whose differences of length are known."""
    summary = {}
    for name, games in _games(rows).items():
        summary[f"lc_{name}"] = controlled_rate(games.wins, games.longer)
    return summary


def length_controlled_interval(
    rows: Sequence[EvaluationRow], name: str, *, level: float = 0.95
) -> tuple[float, float, float] | None:
    """A win rate at equal length, such as `lc_win_vs_start`, and its interval; None where it was not measured."""
    games = _games(rows)
    modes = [games[key] for mode in (GREEDY, SAMPLED) if (key := f"{name.removeprefix('lc_')}/{mode}") in games]
    return controlled_interval(modes, level=level) if modes else None


def _games(rows: Iterable[EvaluationRow]) -> dict[str, Games]:
    """The completions of each `win_vs_NAME/mode` whose differences of length are known."""
    values: dict[str, dict[CompletionKey, float]] = defaultdict(dict)
    for row in rows:
        if "_vs_" in row["measure"]:
            values[f"{row['measure']}/{row['mode']}"][key(row)] = row["value"]
    games = {}
    for name, wins in values.items():
        kind, _, other = name.partition("_vs_")
        longer = values.get(f"length_vs_{other}", {})
        if kind in WINS and wins.keys() <= longer.keys():
            prompts = [prompt or "" for _, prompt, _ in wins]
            games[name] = Games(prompts, list(wins.values()), [longer[completion] for completion in wins])
    return games


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
