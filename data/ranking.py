"""Several answers to one prompt, with scores or ranks, as pairs of a better and a worse one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any, Literal

from data.conversations import NO_PREFERENCE, Cell, Dropped, is_nothing, malformed
from data.labels import Notes, number

Pairs = Literal["best_worst", "all", "adjacent"]

ANSWERS = ("completions", "responses", "answers", "candidates")  # columns of lists
SCORES = ("scores", "ratings", "rewards")  # the greater the better
RANKS = ("ranks", "ranking")  # the smaller the better
_ANSWER_KEYS = ("response", "completion", "answer", "text", "content", "output")
_SCORE_KEYS = ("score", "rating", "reward", "overall_score")
_RANK_KEY = "rank"

FEW = "fewer than two answers with a score"
UNSCORED = "without a score or rank"
NO_TEXT = "without a text"


@dataclass(frozen=True)
class Candidate:
    """One answer and how good it is: the greater the better, also where ranks say it."""

    answer: Cell
    worth: float
    generator: Any


def candidates(answers: Cell, raw: Mapping[str, Any], notes: Notes, where: str) -> list[Candidate]:
    """The answers of a row that have a text and a score; those left out are counted. Raises Dropped and BadInput."""
    if not isinstance(answers.value, list) or not answers.value:
        raise malformed(answers, "a list of answers")
    worths = _beside(answers, raw, where) or [_inside(answers.column, item, where) for item in answers.value]
    read = []
    for item, worth in zip(answers.value, worths, strict=True):
        text = _text(answers.column, item)
        if is_nothing(text.value) or (isinstance(text.value, str) and not text.value.strip()):
            notes.left_out[NO_TEXT] += 1
        elif worth is None:
            notes.left_out[UNSCORED] += 1
        else:
            read.append(Candidate(text, worth, item.get("model") if isinstance(item, dict) else None))
    if len(read) < 2:
        raise Dropped(FEW)
    return read


def _beside(answers: Cell, raw: Mapping[str, Any], where: str) -> list[float | None] | None:
    """The scores in a column of their own, if the row has one."""
    columns = [column for column in (*SCORES, *RANKS) if raw.get(column) is not None]
    if not columns:
        return None
    if len(columns) > 1:
        raise Dropped(f"malformed: several columns of scores or ranks: {', '.join(columns)}")
    (column,) = columns
    values = raw[column]
    if not isinstance(values, list) or len(values) != len(answers.value):
        raise Dropped(f"malformed: `{column}` is no list as long as `{answers.column}`")
    sign = -1 if column in RANKS else 1
    numbers = [number(value, column, where) for value in values]
    return [None if value is None else sign * value for value in numbers]


def _inside(column: str, item: Any, where: str) -> float | None:
    if not isinstance(item, dict):
        return None
    keys = [key for key in (*_SCORE_KEYS, _RANK_KEY) if not is_nothing(item.get(key))]
    if len(keys) > 1:
        raise Dropped(f"malformed: an answer of `{column}` has several scores: {', '.join(keys)}")
    if not keys:
        return None
    value = number(item[keys[0]], f"{column}.{keys[0]}", where)
    return value if value is None or keys[0] != _RANK_KEY else -value


def _text(column: str, item: Any) -> Cell:
    """The text or the messages of an answer, which may be under one of several keys."""
    if not isinstance(item, dict) or "role" in item or "from" in item:
        return Cell(column, item)
    # In Parquet every object has the keys of all, empty where it had none.
    keys = [key for key in _ANSWER_KEYS if item.get(key) is not None] or [key for key in _ANSWER_KEYS if key in item]
    if len(keys) != 1:
        raise malformed(Cell(column, [item]), f"a list of texts, or of objects with one of {', '.join(_ANSWER_KEYS)}")
    return Cell(f"{column}.{keys[0]}", item[keys[0]])


def paired(answers: Sequence[Candidate], pairs: Pairs) -> list[tuple[Candidate, Candidate] | Dropped]:
    """Pairs of a better and a worse answer, or a tie in its place.

    `best_worst` is one pair; `adjacent` those next to each other in rank; `all` every two. Of equals, the first comes
    first.
    """
    ordered = sorted(answers, key=lambda answer: -answer.worth)
    match pairs:
        case "best_worst":
            chosen = [(ordered[0], ordered[-1])]
        case "adjacent":
            chosen = list(pairwise(ordered))
        case "all":
            chosen = list(combinations(ordered, 2))
    return [Dropped(NO_PREFERENCE) if better.worth == worse.worth else (better, worse) for better, worse in chosen]
