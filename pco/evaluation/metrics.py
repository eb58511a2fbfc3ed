"""What an evaluation measures: rows for the `evaluations` table, and their summary (docs/evaluation.md)."""

import math
import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from data import store
from pco.evaluation.length_control import controlled_rate
from pco.models.sampling import GREEDY, SAMPLED
from pco.rewards.programs import repeated_share

Row = dict[str, Any]
Summary = dict[str, float]

TEXT = "text"  # the mode of a human text, beside those of a completion
DISTINCT_N = (1, 2, 3)
REPETITION_N = {"repetition": 3, "repetition_4": 4}
WINS = {"win": "reward", "second_win": "second_reward"}  # what is won by which score

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, " "))


def read(folder: Path) -> list[Row]:
    """The rows of a finished evaluation."""
    rows: list[Row] = store.read_table(folder, "evaluations").to_pylist()
    return rows


def completion_rows(
    candidates: Sequence[Row],
    rewards: Sequence[float],
    *,
    second_rewards: Sequence[float] | None = None,
    references: Mapping[str, str] | None = None,
) -> list[Row]:
    """What is measured of each completion alone; what cannot be, a reward that is not finite say, has no row.

    `references` are reference answers by prompt id.
    """
    scores = {"reward": rewards} | ({} if second_rewards is None else {"second_reward": second_rewards})
    rows = []
    for i, candidate in enumerate(candidates):
        reference = (references or {}).get(candidate["prompt_id"])
        values = {name: found[i] for name, found in scores.items()} | _values(candidate, reference)
        rows += [_row(measure, candidate, value) for measure, value in values.items() if math.isfinite(value)]
    return rows


def _values(candidate: Row, reference: str | None) -> dict[str, float]:
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


def rows_against(name: str, rows: Sequence[Row], against: Sequence[Row]) -> list[Row]:
    """Completions beside another policy's for the same prompt, mode and sample: `win_vs_NAME`, `length_vs_NAME`, ...

    A win is 1 where a completion's reward is higher, a tie 0.5. A length is by how many tokens it is longer.
    """
    wins = [win_rows(f"{win}_vs_{name}", rows, against, by=score) for win, score in WINS.items()]
    return sum(wins, _paired(f"length_vs_{name}", "length", rows, against, lambda own, other: own - other))


def win_rows(measure: str, rows: Iterable[Row], against: Iterable[Row], *, by: str = "reward") -> list[Row]:
    """1 where a completion's score beats the other policy's for the same prompt, mode and sample; a tie is 0.5."""
    return _paired(measure, by, rows, against, _win)


def _win(own: float, other: float) -> float:
    return 0.5 if own == other else float(own > other)


def _paired(
    measure: str, of: str, rows: Iterable[Row], against: Iterable[Row], value: Callable[[float, float], float]
) -> list[Row]:
    other = {_key(row): row["value"] for row in against if row["measure"] == of}
    own = [row for row in rows if row["measure"] == of and _key(row) in other]
    return [_row(measure, row, value(row["value"], other[_key(row)])) for row in own]


def reference_rows(rows: Iterable[Row], values: Mapping[tuple[str, str], float]) -> list[Row]:
    """One answer per prompt as if each completion had met it; `values` are its by measure and prompt id."""
    met = [(row, values.get((row["measure"], row["prompt_id"]))) for row in rows]
    return [{**row, "value": value} for row, value in met if value is not None and math.isfinite(value)]


def gains(rows: Iterable[Row], against: Iterable[Row], *, measure: str = "reward", times: float = 1.0) -> list[float]:
    """For each prompt, by how much its completions' mean of a measure is above `times` the other policy's.

    Only completions of which both policies have one; greedy and sampled ones weigh alike, as in `summarise`. The
    prompt is the unit, since its completions are alike.
    """
    return by_prompt(_paired(measure, measure, rows, against, lambda own, other: own - times * other), measure)


def by_prompt(rows: Iterable[Row], measure: str) -> list[float]:
    """Each prompt's mean of a measure, greedy and sampled completions alike: what an interval is made of.

    Empty for a measure of all completions together.
    """
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["measure"] == measure and row["prompt_id"] is not None:
            found[row["prompt_id"]][row["mode"]].append(row["value"])
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


def corpus_rows(candidates: Sequence[Row]) -> list[Row]:
    """distinct-n of all completions of a mode together: distinct n-grams / n-grams."""
    by_mode: dict[str, list[list[int]]] = defaultdict(list)
    for candidate in candidates:
        by_mode[candidate["mode"]].append(candidate["token_ids"])
    return [
        _row(f"distinct_{n}", {"mode": mode}, distinct(texts, n)) for mode, texts in by_mode.items() for n in DISTINCT_N
    ]


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


def drift_rows(rows: Sequence[Row], start: Iterable[Row]) -> list[Row]:
    """By how much each human text became less likely than under the starting policy, nats per token."""
    lost = _paired("drift", "text_logprob", rows, start, lambda now, before: before - now)
    tokens = {_key(row): row["value"] for row in rows if row["measure"] == "text_tokens"}
    return [{**row, "value": row["value"] / tokens[_key(row)]} for row in lost if math.isfinite(row["value"])]


def drifts(rows: Sequence[Row]) -> list[float]:
    """A number per human text whose mean is the drift of all texts as one, for an interval; exp of it is the ratio of
    perplexities.

    Texts differ in length, so that drift is a ratio of sums; each text counts for what it adds to it (the ratio
    estimator, Cochran 1977, section 6.3).
    """
    tokens = {row["prompt_id"]: row["value"] for row in rows if row["measure"] == "text_tokens"}
    found = [(row["value"], tokens[row["prompt_id"]]) for row in rows if row["measure"] == "drift"]
    if not found:
        return []
    mean_tokens = fmean(count for _, count in found)
    ratio = sum(value * count for value, count in found) / sum(count for _, count in found)
    return [ratio + (value - ratio) * count / mean_tokens for value, count in found]


def kl_row(start: Row, logprob: float) -> Row:
    """What a completion that the starting policy sampled lost in probability since, nats per token.

    Its mean estimates KL(start || policy) per token where the temperature is 1 (docs/evaluation.md).
    """
    return _row("kl", start, (start["logprob"] - logprob) / len(start["token_ids"]))


def summarise(rows: Iterable[Row]) -> Summary:
    """Means by measure and mode, as `measure/mode`; `measure` alone weighs greedy and sampled alike.

    `perplexity` is that of all human texts together: exp(-log-probability / tokens), `drift` is its logarithm less the
    starting policy's, and `lc_win_vs_NAME` a win rate at equal length.
    """
    rows = list(rows)
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        values[row["measure"], row["mode"]].append(row["value"])
    summary = {f"{measure}/{mode}": fmean(found) for (measure, mode), found in values.items() if mode != TEXT}
    summary |= _length_controlled(rows)
    for measure in {name.partition("/")[0] for name in summary}:
        modes = [summary[f"{measure}/{mode}"] for mode in (GREEDY, SAMPLED) if f"{measure}/{mode}" in summary]
        summary[measure] = fmean(modes)
    logprobs, tokens = values["text_logprob", TEXT], values["text_tokens", TEXT]
    if sum(tokens):
        summary["perplexity"] = _exp(-sum(logprobs) / sum(tokens))
    if lost := drifts(rows):
        summary["drift"] = fmean(lost)
    return summary


def _length_controlled(rows: Sequence[Row]) -> Summary:
    """`lc_win_vs_NAME/mode` for all win rates whose differences of length are known."""
    found: dict[str, dict[tuple[Any, ...], float]] = defaultdict(dict)
    for row in rows:
        if "_vs_" in row["measure"]:
            found[f"{row['measure']}/{row['mode']}"][_key(row)] = row["value"]
    summary = {}
    for name, wins in found.items():
        kind, _, other = name.partition("_vs_")
        longer = found.get(f"length_vs_{other}", {})
        if kind in WINS and wins.keys() <= longer.keys():
            summary[f"lc_{name}"] = controlled_rate(list(wins.values()), [longer[key] for key in wins])
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
