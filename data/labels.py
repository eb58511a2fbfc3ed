"""What a label says: the coding that is documented, the one that the user gives, and votes of several annotators.

A value of unknown meaning is an error, never a guess: to guess could be to train on the opposite of what was meant.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from data.conversations import NO_PREFERENCE, Dropped, is_nothing
from data.errors import BadInput

Meaning = Literal["first", "second", "tie", "good", "bad"]
Coding = Mapping[str, Meaning]  # from a value as text

References = Literal["given", "NaN", "empty"]

VOTES_TIE = "annotators disagree, no majority"
_STRENGTH = 3  # HelpSteer's scale goes from -3 to 3
_LABELS_HINT = "Say what the values mean, such as --labels first=0,second=1,tie=2"


@dataclass
class Notes:
    """What was read while an import went on, for the user to check."""

    read: Counter[tuple[str, Meaning]] = field(default_factory=Counter)  # value -> meaning
    left_out: Counter[str] = field(default_factory=Counter)  # candidates of a row, by reason
    repeated: int = 0  # rows whose answers repeated the prompt
    references: Counter[References] = field(default_factory=Counter)  # right answers that are there, or are none
    vote_pairs: int = 0  # pairs of annotators of one row
    agreeing: int = 0


def read_labels(words: Collection[str]) -> dict[str, Meaning]:
    """`first=0,second=1,tie=2` as a dict from value to meaning; a meaning may have several values.

    Raises BadInput for what is no such word, or gives a value two meanings.
    """
    meanings: list[tuple[Meaning, str]] = []
    for word in ",".join(words).split(",") if words else []:
        name, separator, value = (part.strip() for part in word.partition("="))
        meaning = _MEANINGS.get(name)
        if not separator or meaning is None:
            raise BadInput(f"--labels {word}: expected {', '.join(_MEANINGS)} with a value, such as first=0.")
        meanings.append((meaning, value))
    return coding(meanings)


def coding(meanings: Iterable[tuple[Meaning, str]]) -> dict[str, Meaning]:
    """The meaning of each value. Raises BadInput where a value has two."""
    by_value: dict[str, Meaning] = {}
    for meaning, value in meanings:
        if value_text(value) in by_value:
            raise BadInput(f"--labels {meaning}={value}: the value {value} is there twice. Give it one meaning.")
        by_value[value_text(value)] = meaning
    return by_value


_MEANINGS: dict[str, Meaning] = {name: name for name in ("first", "second", "tie", "good", "bad")}


def value_text(value: Any) -> str:
    """A value as --labels writes it: true and false in small letters, whole numbers without a point."""
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value).strip()
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else str(number)


@dataclass(frozen=True)
class Place:
    """Where a value stands and how its column is coded."""

    where: str
    column: str
    coding: Coding
    notes: Notes
    zero_is_tie: bool = False  # documented by other columns of the file


def preference(value: Any, place: Place) -> tuple[Literal["first", "second"], float | None]:
    """Which of two outputs is better, and how sure that is, if a number between 1 and 2 tells.

    Raises Dropped for a tie, and BadInput for a value of unknown meaning.
    """
    if isinstance(value, list):
        return _either(_majority([_preference(vote, place)[0] for vote in value], place.notes)), None
    meaning, margin = _preference(value, place)
    return _either(meaning), margin


def _either(meaning: Meaning | None) -> Literal["first", "second"]:
    if meaning == "first" or meaning == "second":  # noqa: PLR1714 mypy narrows only so
        return meaning
    raise Dropped(NO_PREFERENCE)


def _preference(value: Any, place: Place) -> tuple[Meaning | None, float | None]:
    if is_nothing(value):
        return None, None
    if place.coding:
        return _coded(value, place, ("first", "second", "tie")), None
    number = None if isinstance(value, bool) else _float(value)
    known = number is not None and (1 <= number <= 2 or (number == 0 and place.zero_is_tie))
    if number is None or not known:
        raise BadInput(
            f"{place.where}: `{place.column}` is {value!r}. Without --labels, 1 is the first output, 2 the second, and "
            f"a number between them the nearer; any other value may mean either. {_LABELS_HINT}."
        )
    if number in {0, 1.5}:
        return _noted(value_text(value), "tie", place), None
    shown = value_text(value) if number in {1, 2} else ("1 to 1.5" if number < 1.5 else "1.5 to 2")
    # 1 and 2 say which is better; only a number between them also says how sure that is.
    margin = None if number in {1, 2} else abs(2 * number - 3)
    return _noted(shown, "first" if number < 1.5 else "second", place), margin


def _float(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _coded(value: Any, place: Place, wanted: Sequence[Meaning]) -> Meaning:
    meaning = place.coding.get(value_text(value))
    if meaning is None or meaning not in wanted:
        raise BadInput(
            f"{place.where}: `{place.column}` is {value!r}, which --labels does not name as {' or '.join(wanted)}. "
            "Name every value that is there."
        )
    return _noted(value_text(value), meaning, place)


def _noted(value: str, meaning: Meaning, place: Place) -> Meaning:
    place.notes.read[value, meaning] += 1
    return meaning


def _majority(votes: Sequence[Meaning | None], notes: Notes) -> Meaning:
    """What most annotators say. Raises Dropped where as many say something else. Counts how far they agree."""
    counts = Counter(vote for vote in votes if vote is not None)
    cast = counts.total()
    if not cast:
        raise Dropped(NO_PREFERENCE)
    notes.vote_pairs += cast * (cast - 1) // 2
    notes.agreeing += sum(count * (count - 1) // 2 for count in counts.values())
    (winner, most), *others = counts.most_common(2)
    if winner == "tie" or (others and others[0][1] == most):
        raise Dropped(VOTES_TIE)
    return winner


def strength(value: Any, place: Place) -> tuple[Literal["first", "second"], float]:
    """HelpSteer's strength of preference, -3 (the first is much better) to 3 (the second is), and its size.

    Raises Dropped for 0, and BadInput for a value outside that range.
    """
    if is_nothing(value):
        raise Dropped(NO_PREFERENCE)
    number = None if isinstance(value, bool) else _float(value)
    if number is None or not -_STRENGTH <= number <= _STRENGTH:
        raise BadInput(
            f"{place.where}: `{place.column}` is {value!r}. Expected -3 (the first is much better) to 3 (the second)."
        )
    meanings: dict[int, Meaning] = {-1: "first", 0: "tie", 1: "second"}
    meaning = meanings[(number > 0) - (number < 0)]
    return _either(_noted(value_text(value), meaning, place)), abs(number)


def goodness(value: Any, place: Place) -> bool:
    """Whether a completion is good. Raises Dropped for nothing, and BadInput for a value of unknown meaning."""
    if isinstance(value, list):
        return _majority([_goodness(vote, place) for vote in value], place.notes) == "good"
    meaning = _goodness(value, place)
    if meaning in {None, "tie"}:
        raise Dropped(NO_PREFERENCE)
    return meaning == "good"


def _goodness(value: Any, place: Place) -> Meaning | None:
    if is_nothing(value):
        return None
    if place.coding:
        return _coded(value, place, ("good", "bad", "tie"))
    text = value_text(value).lower()
    if text not in {"true", "1", "false", "0"}:
        raise BadInput(
            f"{place.where}: `{place.column}` is {value!r}. Expected true or false (or 1 or 0). Say what the values "
            "mean, such as --labels good=5,good=4,bad=1, or turn a rating into that first."
        )
    return _noted(text, "good" if text in {"true", "1"} else "bad", place)


def refuse_zero_based(notes: Notes, *, one_is_first: bool, where: str) -> None:
    """Refuse a whole file whose preferences may count from 0: read as 1 and 2 they would say the opposite.

    These are 0 and 1; and 1 alone, unless the columns tell that `one_is_first`. Raises BadInput naming `where`.
    """
    values = {value for value, _ in notes.read}
    if values == {"0", "1"}:
        raise BadInput(f"{where}: `preference` is 0 or 1 and never 2, as if it counted from 0. {_LABELS_HINT}.")
    if values == {"1"} and not one_is_first:
        raise BadInput(
            f"{where}: `preference` is always 1: the first output if it counts from 1, the second if from 0. "
            f"{_LABELS_HINT}."
        )


def number(value: Any, column: str, where: str) -> float | None:
    """A number, also as CSV writes it; None for nothing. Raises BadInput for anything else."""
    if is_nothing(value):
        return None
    parsed = None if isinstance(value, bool) else _float(value)
    if parsed is None:
        raise BadInput(f"{where}: `{column}` is {value!r}. Expected a number or nothing.")
    if math.isinf(parsed):
        raise BadInput(f"{where}: `{column}` is infinite. Expected a finite number or nothing: correct the row.")
    return None if math.isnan(parsed) else parsed
