"""What a reward is to the stages that use it."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pco.config.reward import RewardConfig

Candidate = Mapping[str, Any]
Candidates = Sequence[Candidate]

NOT_FINITE = "reward is not finite"


@dataclass(frozen=True)
class Score:
    """What a reward says of one candidate; `value` is a number or, where it has none to give, NaN."""

    value: float
    members: list[float] | None = None  # what each member of an ensemble said, in the config's order
    why_none: str | None = None  # said of a candidate that gets no reward

    @property
    def dropped(self) -> str | None:
        """Why the candidate cannot be used; None when it can."""
        return None if math.isfinite(self.value) else self.why_none or NOT_FINITE


Scorer = Callable[[Candidates], list[Score]]
Counts = defaultdict[str, float]


@dataclass(frozen=True)
class Reward:
    """What scores candidates, one score each in order, and the digest that stands for it."""

    config: RewardConfig
    digest: str
    score: Scorer
    counts: Counts = field(default_factory=lambda: defaultdict(float))  # of a judge, since it was loaded


def plain(value: Callable[[Candidate], float]) -> Scorer:
    """A scorer that looks at one candidate at a time."""
    return lambda candidates: [Score(value(row)) for row in candidates]
