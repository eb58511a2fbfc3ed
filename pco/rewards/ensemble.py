"""Several rewards as one. Disagreement as a penalty: Coste et al., arXiv 2310.02743, equations 3 and 4."""

import math
from collections.abc import Sequence

from pco.config.reward import EnsembleReward
from pco.rewards.scores import Candidates, Score, Scorer


def scorer(config: EnsembleReward, members: Sequence[Scorer]) -> Scorer:
    """A scorer whose members score the batch one after the other."""

    def score(candidates: Candidates) -> list[Score]:
        columns = [member(candidates) for member in members]
        return [_combined(list(row), config) for row in zip(*columns, strict=True)]

    return score


def _combined(scores: list[Score], config: EnsembleReward) -> Score:
    """A candidate without a finite reward from every member has none, for the reason of the first such member."""
    reason = next((score.dropped for score in scores if score.dropped), None)
    values = [score.value for score in scores]
    return Score(combine(values, config) if reason is None else math.nan, values, reason)


def combine(values: Sequence[float], config: EnsembleReward) -> float:
    """One number of the members' finite rewards."""
    if config.combine == "min":
        return min(values)
    weights = [member.weight for member in config.members]
    mean = _mean(values, weights)
    if config.combine == "mean":
        return mean
    variance = _mean([(value - mean) ** 2 for value in values], weights)
    return mean - config.uncertainty_weight * math.sqrt(variance)


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return math.fsum(w * value for w, value in zip(weights, values, strict=True)) / math.fsum(weights)
