"""The numbers of a report, apart from how they are shown. HTML and Markdown both read these and compute none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from data.rows import FinalTestRow
from data.store import Manifest
from pco.config.run import RunConfig
from pco.evaluation.gate import RuleResult
from pco.evaluation.rows import Summary
from pco.specs import StageName

Status = Literal["done", "begun", "not begun", "not run"]
Outcome = Literal["finished", "refused", "unfinished"]


@dataclass(frozen=True)
class StageReport:
    """How far one stage of one round got; `committed` counts completions of a stage that is not done."""

    round: int
    name: StageName
    status: Status
    manifest: Manifest | None
    committed: int = 0


@dataclass(frozen=True)
class GateReport:
    """The gate's decision on a round and the results of its rules."""

    promoted: bool
    results: list[RuleResult]


@dataclass(frozen=True)
class Funnel:
    """How many of a round's prompts reached each step on the way to training; None for what is not there yet.

    `dropped` counts by reason, each in its stage's own unit, as `(stage, unit, reason) -> count`.
    """

    candidates: int | None
    scored: int | None
    prompts: int | None
    pairs: int | None
    trained: int | None
    dropped: dict[tuple[str, str, str], int]


@dataclass(frozen=True)
class SamplePair:
    """Two completions of one prompt and their rewards."""

    prompt: str
    chosen: str
    rejected: str
    chosen_reward: float
    rejected_reward: float

    @property
    def margin(self) -> float:
        """By how much the chosen completion's reward is higher."""
        return self.chosen_reward - self.rejected_reward


@dataclass(frozen=True)
class PairStatistics:
    """Means over a round's pairs (rewards; lengths in tokens), and the pairs at both ends of the reward margin."""

    chosen_reward: float
    rejected_reward: float
    chosen_length: float
    rejected_length: float
    largest: list[SamplePair]
    smallest: list[SamplePair]


@dataclass(frozen=True)
class Interval:
    """Where a value lies with 95 % confidence."""

    low: float
    high: float


@dataclass(frozen=True)
class RoundReport:
    """A round's results; round 0 is the starting policy. What is not there yet is None or empty."""

    number: int
    summary: Summary | None = None
    intervals: dict[str, Interval] = field(default_factory=dict)
    decision: GateReport | None = None
    funnel: Funnel | None = None
    pairs: PairStatistics | None = None
    train_log: Sequence[Mapping[str, float | None]] = ()

    @property
    def name(self) -> str:
        """For people."""
        return f"round {self.number}" if self.number else "start"

    def value(self, metric: str) -> float | None:
        """A metric of its policy, None where it was not measured."""
        return None if self.summary is None else self.summary.get(metric)


@dataclass(frozen=True)
class TracedPair:
    """A training pair, and by how much its gradient moved the log-probability of an answer, nats (`pco trace`)."""

    prompt: str
    chosen: str
    rejected: str
    influence: float


@dataclass(frozen=True)
class HeldoutChange:
    """The greedy completions of one held-out prompt by the starting policy and by a later one.

    `traced` are the pairs that raised the later one most, where it was traced.
    """

    prompt: str
    before: str
    after: str
    before_reward: float
    after_reward: float
    traced: Sequence[TracedPair] = ()

    @property
    def gain(self) -> float:
        """Reward after minus reward before."""
        return self.after_reward - self.before_reward


@dataclass(frozen=True)
class HeldoutChanges:
    """How greedy completions changed from the starting policy to that of `round`, in prompts, and the extremes."""

    round: int
    improved: int
    equal: int
    worsened: int
    most_improved: list[HeldoutChange]
    most_worsened: list[HeldoutChange]


@dataclass(frozen=True)
class StageTime:
    """Where one finished stage's seconds went; `work_s` is sampling or training, what is unknown is 0."""

    round: int
    name: StageName
    seconds: float
    engine_start_s: float
    work_s: float
    tokens: int
    tokens_per_s: float | None

    @property
    def rest_s(self) -> float:
        """Loading, scoring, checking, saving."""
        return max(0.0, self.seconds - self.engine_start_s - self.work_s)


@dataclass(frozen=True)
class Timings:
    """Wall clock from the first finished stage's begin to the last one's end, seconds since the epoch."""

    began: float
    ended: float
    outside_s: float
    stages: list[StageTime]

    @property
    def wall_s(self) -> float:
        """All of it."""
        return self.ended - self.began


@dataclass(frozen=True)
class FinalTest:
    """The best policy against the starting one on the test prompts, which decided nothing; or why there is none.

    `rows` are empty until there is one, and `note` says then what it waits for. `round` trained the policy that was
    tested, and `is_of_best` says whether that is still the best one. `looks` counts the policies put to the test set.
    """

    rows: list[FinalTestRow]
    round: int | None
    is_of_best: bool
    looks: int
    note: str = ""

    @property
    def prompts(self) -> int:
        """How many test prompts both policies answered."""
        return max((row["prompts"] for row in self.rows), default=0)


@dataclass(frozen=True)
class RunReport:
    """All that a report says about a run; `rounds[0]` is the starting policy."""

    config: RunConfig
    outcome: Outcome
    rounds: list[RoundReport]
    stages: list[StageReport]
    train_prompts: int | None
    timings: Timings
    changes: HeldoutChanges | None
    test: FinalTest | None = None
    """Of a run with test prompts."""

    @property
    def start(self) -> RoundReport:
        """The starting policy."""
        return self.rounds[0]

    @property
    def evaluated(self) -> list[RoundReport]:
        """The rounds whose policy was evaluated, the starting policy first."""
        return [report for report in self.rounds if report.summary is not None]

    @property
    def promoted(self) -> list[RoundReport]:
        """The rounds whose policy was promoted."""
        return [report for report in self.rounds if report.decision is not None and report.decision.promoted]

    @property
    def refused(self) -> RoundReport | None:
        """The round whose refusal ended the run, if one did."""
        if self.outcome != "refused":
            return None
        return [report for report in self.rounds if report.decision is not None][-1]

    @property
    def subject(self) -> RoundReport | None:
        """Whose metrics stand at the top: the policy kept last, else the one evaluated last, if any."""
        if self.promoted:
            return self.promoted[-1]
        later = [report for report in self.evaluated if report.number]
        return later[-1] if later else None

    @property
    def unfinished(self) -> StageReport | None:
        """The first stage that is still to be finished."""
        return next((stage for stage in self.stages if stage.status in {"begun", "not begun"}), None)
