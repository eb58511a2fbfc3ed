"""The rows of an evaluation's two tables, `candidates` and `evaluations`."""

from data.rows import CandidateRow, EvaluationRow

__all__ = ["TEXT", "CandidateRow", "CompletionKey", "EvaluationRow", "Summary", "key", "of_completion", "of_text"]

TEXT = "text"  # the mode of a human text, beside those of a completion

Summary = dict[str, float]
CompletionKey = tuple[str, str | None, int | None]


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
