"""The accuracy of a reward model on held-out pairs, beside that of the rule that the longer text wins."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.rows import RewardTestRow
from pco.evaluation.intervals import paired_interval

MATCHED = 1.1  # the longer completion of a length-matched pair has at most so many times the tokens of the shorter
BINS = 10  # of the predicted probability, from a half to 1

Numbers = np.ndarray


@dataclass(frozen=True)
class Share:
    """How often a rule picks the preferred text; a tie counts half.

    `of_pairs` weighs all pairs alike. `mean`, with its 95 % interval, weighs all prompts alike: pairs of one prompt are
    not independent, so the prompt is the unit.
    """

    pairs: int
    prompts: int
    of_pairs: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Bin:
    """Pairs whose winner was predicted with a similar probability, and how often that winner was the preferred one."""

    pairs: int
    predicted: float
    observed: float


@dataclass(frozen=True)
class Measured:
    """The test of a reward model. The shares of length-matched pairs are None if there are no such pairs."""

    reward: Share
    longer: Share
    matched_reward: Share | None
    matched_longer: Share | None
    calibration: list[Bin]
    follows_length: float

    @property
    def calibration_error(self) -> float:
        """Expected calibration error (Guo et al. 2017): the mean distance of predicted and observed over pairs."""
        pairs = sum(group.pairs for group in self.calibration)
        return sum(group.pairs * abs(group.predicted - group.observed) for group in self.calibration) / pairs

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers for the manifest."""
        matched = {"matched_accuracy": self.matched_reward, "matched_longer_wins": self.matched_longer}
        return {
            "accuracy": self.reward.of_pairs,
            "longer_wins": self.longer.of_pairs,
            **{name: share.of_pairs for name, share in matched.items() if share is not None},
            "calibration_error": self.calibration_error,
            "follows_length": self.follows_length,
        }


def measured(rows: Sequence[RewardTestRow]) -> Measured:
    """Measure the rows of a `reward_tests` table, at least one."""
    reward = np.array([row["reward_chosen"] - row["reward_rejected"] for row in rows], float)
    length = np.log([max(row["length_chosen"], 1) / max(row["length_rejected"], 1) for row in rows])
    prompts = [row["prompt_id"] for row in rows]
    matched = np.abs(length) <= np.log(MATCHED) + 1e-9
    shares = {"reward": _right(reward), "longer": _right(length)}
    of_all = {name: _share(right, prompts) for name, right in shares.items()}
    matched_prompts = [prompt for prompt, is_matched in zip(prompts, matched, strict=True) if is_matched]
    of_matched = {
        name: _share(right[matched], matched_prompts) if matched_prompts else None for name, right in shares.items()
    }
    return Measured(
        of_all["reward"],
        of_all["longer"],
        of_matched["reward"],
        of_matched["longer"],
        _bins(reward),
        _follows(reward, length),
    )


def _right(difference: Numbers) -> Numbers:
    right: Numbers = (np.sign(difference) + 1) / 2
    return right


def _share(right: Numbers, prompts: Sequence[str]) -> Share:
    by_prompt: dict[str, list[float]] = defaultdict(list)
    for prompt, value in zip(prompts, right.tolist(), strict=True):
        by_prompt[prompt].append(value)
    mean, low, high = paired_interval([sum(values) / len(values) for values in by_prompt.values()])
    return Share(len(right), len(by_prompt), float(right.mean()), mean, max(0.0, low), min(1.0, high))


def _bins(difference: Numbers) -> list[Bin]:
    """Pairs in bins by the probability of the predicted winner, sigmoid(|difference|)."""
    predicted = 1 / (1 + np.exp(-np.abs(difference)))
    bin_index = np.minimum((BINS * (2 * predicted - 1)).astype(int), BINS - 1)
    right = _right(difference)
    bins = []
    for i in range(BINS):
        inside = bin_index == i
        if inside.any():
            bins.append(Bin(int(inside.sum()), float(predicted[inside].mean()), float(right[inside].mean())))
    return bins


def _follows(reward: Numbers, length: Numbers) -> float:
    """Correlation of reward with the logarithm of length within pairs, each taken in both orders: -1 to 1."""
    spread = float(np.sqrt(np.sum(reward**2) * np.sum(length**2)))
    return float(np.sum(reward * length)) / spread if spread else 0.0
