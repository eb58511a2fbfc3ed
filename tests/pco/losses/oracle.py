"""The losses once more, in float64 NumPy, written from the formulas with loops over tokens.

Shares nothing with `pco.losses`: not the arithmetic, not the masking, not the order of operations.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ids = NDArray[np.int64]
IGNORED = -100


def log_probability(scores: Array, token: int) -> float:
    """log softmax(scores)[token]."""
    top = max(scores)
    return float(scores[token] - top - math.log(math.fsum(math.exp(s - top) for s in scores)))


def completion_logp(logits: Array, labels: Ids) -> float:
    """Sum over the tokens of one completion, logits (T, V)."""
    total = 0.0
    for scores, label in zip(logits, labels, strict=True):
        if label != IGNORED:
            total += log_probability(scores, label)
    return total


def candidates(scores: Array, negative: int, k: int) -> dict[int, float]:
    """The k largest tokens other than the negative one, each with its probability among them."""
    others = [token for token in range(len(scores)) if token != negative]
    best = sorted(others, key=lambda token: -scores[token])[:k]
    top = max(scores[token] for token in best)
    weights = {token: math.exp(scores[token] - top) for token in best}
    return {token: weight / math.fsum(weights.values()) for token, weight in weights.items()}


def draw(scores: Array, negative: int, k: int, uniform: float) -> int:
    """Inverse CDF over the candidates in the order of their ids."""
    below = 0.0
    chances = sorted(candidates(scores, negative, k).items())
    for token, chance in chances:
        below += chance
        if uniform < below:
            return token
    return chances[-1][0]


def cringe_token(scores: Array, negative: int, contrast: int) -> float:
    """-log(exp(s[c]) / (exp(s[c]) + exp(s[n])))."""
    pair = (scores[contrast], scores[negative])
    top = max(pair)
    return float(top + math.log(math.fsum(math.exp(s - top) for s in pair)) - scores[contrast])


def cringe_completion(logits: Array, labels: Ids, contrast: Ids) -> float:
    total = 0.0
    for scores, label, chosen in zip(logits, labels, contrast, strict=True):
        if label != IGNORED:
            total += cringe_token(scores, label, chosen)
    return total


def unlikelihood_completion(logits: Array, labels: Ids) -> float:
    """Sum of -log(1 - p), from the sum of the other tokens' probabilities."""
    total = 0.0
    for scores, label in zip(logits, labels, strict=True):
        if label != IGNORED:
            others = [log_probability(scores, token) for token in range(len(scores)) if token != label]
            top = max(others)
            total -= top + math.log(math.fsum(math.exp(other - top) for other in others))
    return total


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def gate(margin: float, b: float, tau: float, kind: str) -> float:
    if kind == "soft":
        return sigmoid((b - margin) / tau)
    if kind == "hard":
        return 1.0 if margin < b else 0.0
    return 1.0


@dataclass(frozen=True)
class Pair:
    loss: float
    gate: float
    margin: float
    ce: float
    cringe: float


def pairwise(
    chosen_logits: Array,
    chosen_labels: Ids,
    rejected_logits: Array,
    rejected_labels: Ids,
    contrast: Ids,
    *,
    alpha: float,
    b: float,
    tau: float,
    kind: str,
    normalized: bool,
    constant_gate: float | None = None,
) -> Pair:
    """One pair. `constant_gate` stands in for the gate where it must not be differentiated."""
    chosen = completion_logp(chosen_logits, chosen_labels)
    rejected = completion_logp(rejected_logits, rejected_labels)
    margin = chosen - rejected
    if normalized:
        counts = [sum(1 for t in labels if t != IGNORED) for labels in (chosen_labels, rejected_labels)]
        margin = (chosen / counts[0] if counts[0] else 0.0) - (rejected / counts[1] if counts[1] else 0.0)
    factor = gate(margin, b, tau, kind) if constant_gate is None else constant_gate
    ce = -chosen
    term = cringe_completion(rejected_logits, rejected_labels, contrast)
    return Pair(factor * (ce + alpha * term), factor, margin, ce, term)


def dpo(pw: float, pl: float, rw: float, rl: float, beta: float, smoothing: float) -> float:
    logit = beta * ((pw - rw) - (pl - rl))
    return -(1 - smoothing) * log_sigmoid(logit) - smoothing * log_sigmoid(-logit)


def ipo(pw: float, pl: float, rw: float, rl: float, beta: float) -> float:
    return ((pw - rw) - (pl - rl) - 1 / (2 * beta)) ** 2


def mean(total: float, tokens: int) -> float:
    """Per token; an empty completion has the mean 0."""
    return total / tokens if tokens else 0.0


def normalized_dpo(
    pw: float, pl: float, rw: float, rl: float, tokens: tuple[int, int], beta: float, smoothing: float
) -> float:
    logit = beta * (mean(pw, tokens[0]) - mean(rw, tokens[0]) - mean(pl, tokens[1]) + mean(rl, tokens[1]))
    return -(1 - smoothing) * log_sigmoid(logit) - smoothing * log_sigmoid(-logit)


def normalized_ipo(pw: float, pl: float, rw: float, rl: float, tokens: tuple[int, int], beta: float) -> float:
    return (mean(pw, tokens[0]) - mean(rw, tokens[0]) - mean(pl, tokens[1]) + mean(rl, tokens[1]) - 0.5 / beta) ** 2


def simpo(pw: float, pl: float, tokens: tuple[int, int], beta: float, gamma: float, smoothing: float) -> float:
    logit = beta * mean(pw, tokens[0]) - beta * mean(pl, tokens[1]) - gamma
    return -(1 - smoothing) * log_sigmoid(logit) - smoothing * log_sigmoid(-logit)


def slope(function: Callable[[], float], point: Array, step: float = 1e-5) -> Array:
    """Central differences of a number with respect to every entry of `point`, in place and back."""
    gradient = np.zeros_like(point)
    for index in np.ndindex(point.shape):
        before = point[index]
        point[index] = before + step
        above = function()
        point[index] = before - step
        below = function()
        point[index] = before
        gradient[index] = (above - below) / (2 * step)
    return gradient
