"""What rewards and the stages that use them share: candidates, scores, and the reward itself."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from data.rows import Message
from pco.config.reward import RewardConfig


class Candidate(TypedDict, total=False):
    """What a reward may read of a completion: the columns of `candidates`, and four that `score_rows` adds.

    Not every row has every column. A replayed pair does not say how its texts were sampled: those columns are None.
    """

    prompt_id: str
    mode: str | None
    sample: int
    prompt: str
    prompt_token_ids: list[int]
    completion: str
    token_ids: list[int]
    logprob: float | None
    finish_reason: str | None
    seed: int | None
    policy: str
    source_prompt: str
    messages: list[Message] | None
    reference: str | None
    baseline: str


Candidates = Sequence[Candidate]

NOT_FINITE = "reward is not finite"


@dataclass(frozen=True)
class Score:
    """The reward of one candidate; `value` is NaN where there is none."""

    value: float
    members: list[float] | None = None  # the values of an ensemble's members, in the config's order
    why_none: str | None = None  # why there is no reward

    @property
    def dropped(self) -> str | None:
        """Why the candidate cannot be used; None when it can."""
        return None if math.isfinite(self.value) else self.why_none or NOT_FINITE


Scorer = Callable[[Candidates], list[Score]]
Counts = defaultdict[str, float]


@dataclass(frozen=True)
class Reward:
    """A function that returns one score for each candidate, in order, and the digest that names it in tables."""

    config: RewardConfig
    digest: str
    score: Scorer
    counts: Counts = field(default_factory=lambda: defaultdict(float))  # of a judge since it was loaded


def plain(value: Callable[[Candidate], float]) -> Scorer:
    """A scorer from a function of one candidate."""
    return lambda candidates: [Score(value(row)) for row in candidates]
