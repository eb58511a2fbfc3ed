"""The rows of an evaluation's two tables, `candidates` and `evaluations`."""

from typing import NotRequired, TypedDict

TEXT = "text"  # the mode of a human text, beside those of a completion

Summary = dict[str, float]
CompletionKey = tuple[str, str | None, int | None]


class EvaluationRow(TypedDict):
    """A row of the table `evaluations`; `policy` is there once it is written."""

    measure: str
    mode: str
    prompt_id: str | None
    sample: int | None
    value: float
    policy: NotRequired[str]


class CandidateRow(TypedDict):
    """A row of the table `candidates`."""

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


def of_completion(metric: str, candidate: CandidateRow, value: float) -> EvaluationRow:
    """A row about one completion."""
    return {
        "measure": metric,
        "mode": candidate["mode"],
        "prompt_id": candidate["prompt_id"],
        "sample": candidate["sample"],
        "value": value,
    }


def of_text(metric: str, prompt_id: str, value: float) -> EvaluationRow:
    """A row about one human text."""
    return {"measure": metric, "mode": TEXT, "prompt_id": prompt_id, "sample": None, "value": value}


def key(row: EvaluationRow) -> CompletionKey:
    """What names a completion or text within an evaluation."""
    return row["mode"], row["prompt_id"], row["sample"]
