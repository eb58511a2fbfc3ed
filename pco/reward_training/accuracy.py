"""What a reward model is worth on held-out pairs, beside the rule that the longer text wins."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pco.evaluation.intervals import paired_interval

MATCHED = 1.1  # the longer completion of a length-matched pair has at most so many times the tokens of the shorter
BINS = 10  # of the predicted probability, from a half to 1

Row = dict[str, Any]
Numbers = np.ndarray


@dataclass(frozen=True)
class Share:
    """How often a rule picks the preferred text; a tie counts half.

    `of_pairs` weighs pairs alike. `mean`, with its 95 % interval, weighs prompts alike: pairs of one prompt hang
    together, so prompts are what is resampled.
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
    """The test of a reward model; what concerns length-matched pairs is None where there are none."""

    reward: Share
    longer: Share
    matched_reward: Share | None
    matched_longer: Share | None
    calibration: list[Bin]
    follows_length: float

    @property
    def calibration_error(self) -> float:
        """Expected calibration error (Guo et al. 2017): the mean distance of predicted and observed over pairs."""
        pairs = sum(one.pairs for one in self.calibration)
        return sum(one.pairs * abs(one.predicted - one.observed) for one in self.calibration) / pairs

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


def measured(rows: Sequence[Row]) -> Measured:
    """Measure the rows of a `reward_tests` table, at least one."""
    columns = ("reward_chosen", "reward_rejected", "length_chosen", "length_rejected")
    chosen, rejected, long_chosen, long_rejected = (np.array([row[name] for row in rows], float) for name in columns)
    prompts = [row["prompt_id"] for row in rows]
    reward, length = chosen - rejected, np.log(np.maximum(long_chosen, 1) / np.maximum(long_rejected, 1))
    matched = np.abs(length) <= np.log(MATCHED) + 1e-9
    shares = {"reward": _right(reward), "longer": _right(length)}
    of_all = {name: _share(right, prompts) for name, right in shares.items()}
    some = [prompt for prompt, is_matched in zip(prompts, matched, strict=True) if is_matched]
    of_matched = {name: _share(right[matched], some) if some else None for name, right in shares.items()}
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
    """By the probability of the predicted winner, sigmoid(|difference|)."""
    predicted = 1 / (1 + np.exp(-np.abs(difference)))
    place = np.minimum((BINS * (2 * predicted - 1)).astype(int), BINS - 1)
    right = _right(difference)
    return [
        Bin(int(inside.sum()), float(predicted[inside].mean()), float(right[inside].mean()))
        for inside in (place == i for i in range(BINS))
        if inside.any()
    ]


def _follows(reward: Numbers, length: Numbers) -> float:
    """Correlation of reward with the logarithm of length within pairs, each taken both ways round: -1 to 1."""
    spread = float(np.sqrt(np.sum(reward**2) * np.sum(length**2)))
    return float(np.sum(reward * length)) / spread if spread else 0.0
