"""Rewards: candidates in, one number each out; higher is better.

A reward is a function of a batch of candidate rows (the columns of the `candidates` table), so that a learned one can
batch as it likes, and its digest names it in every row it scores.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data import store
from pco.config import RepetitionReward

Candidates = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Reward:
    """What scores candidates, and the digest that stands for it."""

    digest: str
    score: Callable[[Candidates], list[float]]


def load(config: RepetitionReward) -> Reward:
    """The reward that the config describes."""
    match config.kind:
        case "repetition":
            return Reward(
                digest=store.digest(config.model_dump()),
                score=lambda batch: [0.0 - repeated_share(row["token_ids"], config.ngram) for row in batch],
            )


def repeated_share(tokens: Sequence[int], n: int) -> float:
    """Share of a completion's n-grams that occurred in it before (arXiv 2312.16682, section 4.1); 0 when it has none.

    1 - distinct / all, so 0 says that nothing is repeated and values near 1 that nearly everything is.
    """
    total = len(tokens) - n + 1
    if total <= 0:
        return 0.0
    return 1 - len({tuple(tokens[i : i + n]) for i in range(total)}) / total
