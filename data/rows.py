"""The rows of the Parquet tables as types; `data.schemas` says what each column holds.

`ROWS` names the type of each table. A test checks that types and schemas agree.
"""

from typing import NotRequired, TypedDict


class Message(TypedDict):
    """One turn of a conversation; the role is system, user, assistant or tool, or tools for a list of their schemas."""

    role: str
    content: str


class PromptRow(TypedDict):
    """A row of `prompts`."""

    split: str
    prompt_id: str
    source_id: str | None
    prompt: str
    reference: str | None
    messages: list[Message] | None


class CandidateRow(TypedDict):
    """A row of `candidates`."""

    prompt_id: str
    mode: str
    sample: int
    prompt: str
    prompt_token_ids: list[int]
    completion: str
    token_ids: list[int]
    logprob: float
    finish_reason: str
    seed: int
    policy: str


class ScoreRow(TypedDict):
    """A row of `scores`."""

    prompt_id: str
    sample: int
    reward: float
    reward_model: str
    members: list[float] | None


class PairColumns(TypedDict):
    """What all tables of pairs have in common."""

    prompt_id: str
    prompt: str
    chosen: str
    rejected: str
    prompt_token_ids: list[int]
    chosen_token_ids: list[int]
    rejected_token_ids: list[int]
    chosen_sample: int
    rejected_sample: int
    policy: str


class PairRow(PairColumns):
    """A row of `pairs`."""

    chosen_reward: float
    rejected_reward: float


class ReplayRow(PairColumns):
    """A row of `replay`."""

    chosen_reward: float | None
    rejected_reward: float | None
    round: int


class TrainingPairRow(PairColumns):
    """A row of `pairs` or of `replay`: what a round trains on. Only a replayed pair has a round."""

    chosen_reward: float | None
    rejected_reward: float | None
    round: NotRequired[int]


class PreferenceRow(PairColumns):
    """A row of `preferences`."""

    chosen_reward: float | None
    rejected_reward: float | None
    source_prompt: str | None
    messages: list[Message] | None


class FeedbackRow(TypedDict):
    """A row of `feedback`."""

    prompt_id: str
    prompt: str
    completion: str
    good: bool
    prompt_token_ids: list[int]
    token_ids: list[int]
    messages: list[Message] | None


class ReferenceLogpsRow(TypedDict):
    """A row of `reference_logps`."""

    round: int | None
    prompt_id: str
    chosen_sample: int
    rejected_sample: int
    chosen_logp: float
    rejected_logp: float
    policy: str


class TrainLogRow(TypedDict):
    """A row of `train_log`."""

    step: int
    epoch: int
    pairs: int
    feedback: int
    tokens: int
    loss: float
    margin: float | None
    gate: float | None
    ce: float | None
    cringe: float | None
    feedback_loss: float | None
    learning_rate: float
    grad_norm: float
    seconds: float


class RewardPairRow(TypedDict):
    """A row of `reward_pairs`."""

    split: str
    prompt_id: str
    prompt: str
    chosen: str
    rejected: str
    chosen_token_ids: list[int]
    rejected_token_ids: list[int]
    chosen_length: int
    rejected_length: int
    margin: float | None
    messages: list[Message] | None


class RewardLogRow(TypedDict):
    """A row of `reward_log`."""

    step: int
    epoch: int
    pairs: int
    tokens: int
    loss: float
    accuracy: float
    margin: float
    learning_rate: float
    grad_norm: float
    seconds: float


class RewardTestRow(TypedDict):
    """A row of `reward_tests`."""

    prompt_id: str
    reward_chosen: float
    reward_rejected: float
    length_chosen: int
    length_rejected: int
    reward_model: str


class EvaluationRow(TypedDict):
    """A row of `evaluations`; `policy` is added when the row is written."""

    measure: str
    mode: str
    prompt_id: str | None
    sample: int | None
    value: float
    policy: NotRequired[str]


class DecisionRow(TypedDict):
    """A row of `decisions`."""

    round: int
    rule: str
    value: float
    bound: str
    passed: bool
    reason: str
    promoted: bool
    low: float | None
    high: float | None
    doubt: str | None


class RewardBenchmarkRow(TypedDict):
    """A row of `reward_benchmark`."""

    item: int
    source_id: str | None
    subset: str
    tie: str | None
    tie_number: int | None
    correct: bool
    length: int
    reward: float
    as_first: float | None
    as_second: float | None
    reward_model: str


class JudgementRow(TypedDict):
    """A row of `judgements`."""

    prompt_id: str
    win: float
    as_first: float | None
    as_second: float | None
    length: int
    other_length: int
    style: list[int]
    other_style: list[int]


class FinalTestRow(TypedDict):
    """A row of `tests`."""

    metric: str
    prompts: int
    start: float
    best: float
    difference: float
    low: float | None
    high: float | None


class InfluenceRow(TypedDict):
    """A row of `influence`."""

    round: int | None
    prompt_id: str
    chosen_sample: int
    rejected_sample: int
    influence: float


class StudyResultRow(TypedDict):
    """A row of `study_results`."""

    study: str
    variant: str
    seed: int
    run: str
    round: int
    measure: str
    value: float
    promoted: bool | None
    kept: bool
    tokens_sampled: int
    tokens_trained: int
    seconds: float
    judge_requests: int | None


class StudyRunRow(TypedDict):
    """A row of `study_runs`."""

    study: str
    variant: str
    seed: int
    run: str
    state: str
    note: str
    decided: int
    kept: int
    made: int
    shared: int


class UserPreference(TypedDict):
    """A preference of the user's, as `data.readers.read_preferences` returns it."""

    prompt_id: str
    prompt: str
    chosen: str
    rejected: str
    margin: float | None
    messages: list[Message] | None


class UserFeedback(TypedDict):
    """A rated completion of the user's, as `data.readers.read_feedback` returns it."""

    prompt_id: str
    prompt: str
    completion: str
    good: bool
    messages: list[Message] | None


ROWS: dict[str, type] = {
    "prompts": PromptRow,
    "candidates": CandidateRow,
    "scores": ScoreRow,
    "pairs": PairRow,
    "replay": ReplayRow,
    "preferences": PreferenceRow,
    "feedback": FeedbackRow,
    "reference_logps": ReferenceLogpsRow,
    "train_log": TrainLogRow,
    "reward_pairs": RewardPairRow,
    "reward_log": RewardLogRow,
    "reward_tests": RewardTestRow,
    "evaluations": EvaluationRow,
    "decisions": DecisionRow,
    "reward_benchmark": RewardBenchmarkRow,
    "judgements": JudgementRow,
    "tests": FinalTestRow,
    "influence": InfluenceRow,
    "study_results": StudyResultRow,
    "study_runs": StudyRunRow,
}
