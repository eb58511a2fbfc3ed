"""The registry of metrics: every number of an evaluation that a rule, a comparison or the report may name.

It lies beside the config because the gate's config refuses unknown names. `pco.evaluation` (the rules of the gate,
comparisons) and `pco.report` (tables, intervals) read it too, and a test holds docs/evaluation.md to it. The numbers
themselves are computed in `pco.evaluation.metrics`.
"""

from dataclasses import dataclass
from typing import Literal

Direction = Literal[-1, 0, 1]
Unit = Literal["reward", "share", "tokens", "nats per token", "perplexity", "score"]

TASK = "task_"  # begins the key of the metric of a task of lm-eval


@dataclass(frozen=True)
class Metric:
    """One number of an evaluation.

    `key` names it in the evaluation's rows and summary and in the gate's rules; `label` and `meaning` are for people.
    `direction` is +1 if more is better, -1 if less is better, 0 if neither.
    """

    key: str
    label: str
    meaning: str
    direction: Direction
    unit: Unit
    paired: bool = True
    """It has a value per prompt or human text: the differences of two policies are paired and have intervals."""
    relative: bool = False
    """It compares with another policy, so it is not known of the starting one."""
    compared: bool = False
    """`pco compare` has a row for it."""
    shown: bool = False
    """The report has a row for it; with `by_mode` one for greedy and one for sampled completions."""
    by_mode: bool = False


def _win(key: str, label: str, meaning: str, *, paired: bool = True, shown: bool = False) -> Metric:
    return Metric(key, label, meaning, 1, "share", paired=paired, relative=True, shown=shown)


def _distinct(n: int, *, shown: bool = False) -> Metric:
    meaning = f"share of token {n}-grams that are different ones"
    return Metric(f"distinct_{n}", f"Distinct {n}-grams", meaning, 1, "share", paired=False, shown=shown)


_REWARD = "mean over greedy and sampled completions; higher is better"
_SECOND_REWARD = "of one that makes no labels; higher is better"
_BEST_OF_N = "of a prompt's samples, the one that it prefers; what choosing among samples would add"
_SECOND_BEST_OF_N = "of the sample that the first reward prefers"
_REPETITION = "share of repeated 3-grams of tokens"
_ENTROPY = "nats per sampled token; near 0 all samples are alike"
_KL = "nats per token, on what the start sampled"
_PERPLEXITY = "on human text; a sharp rise tells of a degenerate policy"

# In the order in which tables show them.
METRICS = (
    Metric("reward", "Reward", _REWARD, 1, "reward", compared=True, shown=True),
    Metric("repetition", "Repetition", _REPETITION, -1, "share", compared=True, shown=True, by_mode=True),
    Metric("repetition_4", "Repetition of 4-grams", "share of repeated 4-grams of tokens", -1, "share"),
    _win("win_vs_previous", "Wins against the previous", "share with more reward; ties half", shown=True),
    _win("win_vs_start", "Wins against the start", "the same against the starting policy", shown=True),
    _win(
        "lc_win_vs_start", "Wins at equal length", "against the start, if both were as long", paired=False, shown=True
    ),
    _win("lc_win_vs_previous", "Wins at equal length against the previous", "estimated", paired=False),
    _win("win_vs_reference", "Wins against the references", "share with more reward than the reference", shown=True),
    _win("lc_win_vs_reference", "Wins at equal length against the references", "estimated", paired=False),
    Metric("second_reward", "Second reward", _SECOND_REWARD, 1, "reward", compared=True, shown=True),
    _win("second_win_vs_start", "Second wins", "against the start, by the second reward", shown=True),
    _win("second_win_vs_previous", "Second wins against the previous", "by the second reward"),
    _win("second_win_vs_reference", "Second wins against the references", "by the second reward"),
    _win("lc_second_win_vs_start", "Second wins at equal length", "by the second reward", paired=False),
    _win("lc_second_win_vs_previous", "Second wins at equal length, previous", "by the second reward", paired=False),
    _win("lc_second_win_vs_reference", "Second wins at equal length, references", "by the second reward", paired=False),
    Metric("best_of_n", "Reward of the best sample", _BEST_OF_N, 1, "reward", shown=True),
    Metric("second_best_of_n", "Second reward of the best sample", _SECOND_BEST_OF_N, 1, "reward", shown=True),
    Metric("f1", "F1", "words in common with the prompt's reference", 1, "share", compared=True, shown=True),
    _distinct(1),
    _distinct(2, shown=True),
    _distinct(3),
    Metric("entropy", "Entropy", _ENTROPY, 0, "nats per token", compared=True, shown=True),
    Metric("kl", "KL from the start", _KL, 0, "nats per token", relative=True, shown=True),
    Metric("length", "Length (tokens)", "mean per completion", 0, "tokens", compared=True, shown=True),
    Metric("perplexity", "Perplexity", _PERPLEXITY, -1, "perplexity", shown=True),
    Metric("drift", "Drift", "logarithm of perplexity over the start's", -1, "nats per token", relative=True),
)


def metric(key: str) -> Metric | None:
    """The metric of that key, None if there is none; each task of lm-eval has one, `task_NAME`."""
    if key.startswith(TASK):
        return Metric(key, f"Task {key.removeprefix(TASK)}", "by lm-eval, its first metric", 1, "score")
    return _BY_KEY.get(key)


_BY_KEY = {known.key: known for known in METRICS}
