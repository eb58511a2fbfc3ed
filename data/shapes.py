"""The shapes that outside data comes in, told by their columns, and what each row of them says."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from data.conversations import (
    MALFORMED,
    NO_PREFERENCE,
    SAME_ANSWERS,
    Dropped,
    Question,
    Turns,
    answered,
    compared,
    compared_implicitly,
    question,
    rendered,
    rendered_answer,
)
from data.errors import BadInput
from data.readers import prompt_id

Kind = Literal["prompts", "preferences", "feedback"]
Name = Literal[
    "prompt",
    "instruction",
    "messages",
    "conversations",
    "text",
    "compared",
    "implicit prompt",
    "output pairs",
    "good",
    "label",
]


@dataclass(frozen=True)
class Shape:
    """One way to write down a kind of data."""

    kind: Kind
    name: Name
    needs: tuple[str, ...]
    takes: tuple[str, ...] = ()  # columns that are used where they are there

    def uses(self) -> tuple[str, ...]:
        return (*self.needs, *self.takes, *_IDS)


_IDS = ("source_id", "id", "prompt_id")
_SCORES = ("margin", "score_chosen", "score_rejected")
_GENERATORS = ("chosen_generator", "rejected_generator")

# The first of a kind whose columns are all there is taken.
SHAPES = (
    Shape("prompts", "prompt", ("prompt",)),
    Shape("prompts", "instruction", ("instruction",), ("input", "instances")),
    Shape("prompts", "messages", ("messages",)),
    Shape("prompts", "conversations", ("conversations",)),
    Shape("prompts", "text", ("text",)),
    Shape("preferences", "compared", ("prompt", "chosen", "rejected"), (*_SCORES, *_GENERATORS)),
    Shape(
        "preferences",
        "output pairs",
        ("instruction", "output_1", "output_2", "preference"),
        ("input", "generator_1", "generator_2"),
    ),
    Shape("preferences", "implicit prompt", ("chosen", "rejected"), (*_SCORES, *_GENERATORS)),
    Shape("feedback", "good", ("prompt", "completion", "good")),
    Shape("feedback", "label", ("prompt", "completion", "label")),
)


def detect(kind: Kind, columns: Collection[str], *, where: str) -> Shape:
    """The shape that these columns tell. Raises BadInput naming `where`, the columns and the shapes known."""
    of_kind = [shape for shape in SHAPES if shape.kind == kind]
    for shape in of_kind:
        if set(shape.needs) <= set(columns):
            return shape
    known = "; ".join(" + ".join(shape.needs) for shape in of_kind)
    raise BadInput(
        f"{where}: no known shape of {kind}. Found columns {', '.join(columns) or 'none'}; expected one of: {known}. "
        "Name the columns with --map, such as --map question=prompt."
    )


def read_map(words: Collection[str]) -> dict[str, str]:
    """`column=name` words as a dict. Raises BadInput for what is no such word, or names a column or name twice."""
    names: dict[str, str] = {}
    known = sorted({name for shape in SHAPES for name in shape.uses()})
    for word in words:
        column, separator, name = (part.strip() for part in word.rpartition("="))
        if not separator or not column:
            raise BadInput(f"--map {word}: expected column=name, such as --map question=prompt.")
        if name not in known:
            raise BadInput(f"--map {word}: no shape has `{name}`. Names are: {', '.join(known)}.")
        if column in names or name in names.values():
            raise BadInput(f"--map {word}: the column or the name is there twice. Give each once.")
        names[column] = name
    return names


def renamed(raw: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A row with its columns mapped; a column of its own by the same name gives way."""
    kept = {column: value for column, value in raw.items() if column not in names and column not in names.values()}
    return {**kept, **{name: raw[column] for column, name in names.items() if column in raw}}


def extract(shape: Shape, raw: Mapping[str, Any], turns: Turns, *, where: str) -> dict[str, Any]:
    """What a row says, as a row of the schema `IMPORTED[shape.kind]`.

    Raises Dropped with the reason when it cannot be kept, and BadInput naming `where` for a label or preference of
    unknown meaning: to guess would be to train on the opposite of what was meant.
    """
    if any(column not in raw for column in shape.needs):
        raise Dropped(MALFORMED)
    match shape.kind:
        case "prompts":
            return _with_ids(raw, rendered(_question(shape, raw), turns))
        case "preferences":
            return _preference(shape, raw, turns, where)
        case _:
            return _feedback(shape, raw, turns, where)


def _with_ids(raw: Mapping[str, Any], prompt: str) -> dict[str, Any]:
    source = next((raw[name] for name in _IDS if raw.get(name) not in (None, "")), None)
    return {"prompt_id": prompt_id(prompt), "source_id": None if source is None else str(source), "prompt": prompt}


def _question(shape: Shape, raw: Mapping[str, Any]) -> Question:
    if shape.name in {"instruction", "output pairs"}:
        return _instruction(raw)
    return question(raw[shape.needs[0]])


def _instruction(raw: Mapping[str, Any]) -> Question:
    """Instruction and input as Alpaca joins them: a blank line between."""
    instruction, given = question(raw["instruction"]), _input(raw) or ""
    if not isinstance(given, str):
        raise Dropped(MALFORMED)
    if not given.strip() or not isinstance(instruction, str) or not instruction.strip():
        return instruction
    return f"{instruction}\n\n{given}"


def _input(raw: Mapping[str, Any]) -> Any:
    """What an instruction is about; Self-Instruct has it in its first instance."""
    match raw.get("instances"):
        case [{"input": given}, *_] if "input" not in raw:
            return given
    return raw.get("input")


@dataclass(frozen=True)
class _Pair:
    asked: Question
    chosen: str
    rejected: str
    margin: float | None
    generators: tuple[Any, Any]  # of chosen and rejected


def _preference(shape: Shape, raw: Mapping[str, Any], turns: Turns, where: str) -> dict[str, Any]:
    pair = _output_pair(raw, where) if shape.name == "output pairs" else _compared(shape, raw, where)
    prompt = rendered(pair.asked, turns)
    chosen, rejected = (rendered_answer(pair.asked, answer, turns) for answer in (pair.chosen, pair.rejected))
    if chosen == rejected:
        raise Dropped(SAME_ANSWERS)
    if pair.margin == 0:
        raise Dropped(NO_PREFERENCE)
    return {
        **_with_ids(raw, prompt),
        "chosen": chosen,
        "rejected": rejected,
        "margin": pair.margin,
        **dict(zip(_GENERATORS, map(_name, pair.generators), strict=True)),
    }


def _name(value: Any) -> str | None:
    return None if value in (None, "") else str(value)


def _compared(shape: Shape, raw: Mapping[str, Any], where: str) -> _Pair:
    texts = (raw["chosen"], raw["rejected"])
    words = compared_implicitly(*texts) if shape.name == "implicit prompt" else compared(raw["prompt"], *texts)
    return _Pair(*words, _margin(raw, where), (raw.get(_GENERATORS[0]), raw.get(_GENERATORS[1])))


def _margin(raw: Mapping[str, Any], where: str) -> float | None:
    """The source's own margin, or the difference of its scores."""
    if raw.get("margin") is not None:
        return _number(raw["margin"], "margin", where)
    chosen, rejected = (_number(raw.get(name), name, where) for name in ("score_chosen", "score_rejected"))
    return None if chosen is None or rejected is None else chosen - rejected


def _output_pair(raw: Mapping[str, Any], where: str) -> _Pair:
    """Two outputs and which is better: 1, 2, or (AlpacaEval 2) between them, the nearer the better."""
    preference = _number(raw["preference"], "preference", where)
    if preference in {None, 0.0, 1.5}:
        raise Dropped(NO_PREFERENCE)
    if preference is None or not 1 <= preference <= 2:
        raise BadInput(
            f"{where}: `preference` is {raw['preference']!r}. Expected 1 or 2, the number of the better output, or a "
            "number between them; 0, 1.5 and null are ties. Change the file to that."
        )
    better, worse = (1, 2) if preference < 1.5 else (2, 1)
    # 1 and 2 say which is better; only a number between them also says how sure that is.
    margin = abs(2 * preference - 3) if 1 < preference < 2 else None
    words = compared(_instruction(raw), raw[f"output_{better}"], raw[f"output_{worse}"])
    return _Pair(*words, margin, (raw.get(f"generator_{better}"), raw.get(f"generator_{worse}")))


def refuse_zero_based(preferences: Collection[str], *, where: str) -> None:
    """Refuse a whole file whose preferences are 0 and 1: read as 1 and 2, it would say the opposite of what it means.

    Raises BadInput naming `where`.
    """
    if {value.removesuffix(".0") for value in preferences} - {"None", "nan", ""} == {"0", "1"}:
        raise BadInput(
            f"{where}: `preference` is 0 or 1 and never 2, as if it counted from 0. Expected 1 for the first output, 2 "
            "for the second, and 0 for a tie. Write that into the file."
        )


def _feedback(shape: Shape, raw: Mapping[str, Any], turns: Turns, where: str) -> dict[str, Any]:
    asked, completion = answered(raw["prompt"], raw["completion"])
    prompt, completion = rendered(asked, turns), rendered_answer(asked, completion, turns)
    column = shape.needs[-1]
    return {**_with_ids(raw, prompt), "completion": completion, "good": _truth(raw[column], column, where)}


def _truth(value: Any, column: str, where: str) -> bool:
    match value.strip().lower() if isinstance(value, str) else value:
        case None | "":
            raise Dropped(NO_PREFERENCE)
        case float() if math.isnan(value):
            raise Dropped(NO_PREFERENCE)
        case True | 1 | "true" | "1" | "1.0":
            return True
        case False | 0 | "false" | "0" | "0.0":
            return False
        case _:
            raise BadInput(
                f"{where}: `{column}` is {value!r}. Expected true or false (or 1 or 0). Turn a rating into that first."
            )


def _number(value: Any, column: str, where: str) -> float | None:
    """A number, also as CSV writes it; None for nothing, and for NaN, which is how CSV writes nothing, too."""
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise BadInput(f"{where}: `{column}` is {value!r}. Expected a number or nothing.") from None
    if math.isinf(number):
        raise BadInput(f"{where}: `{column}` is infinite. Expected a finite number or nothing: correct the row.")
    return None if math.isnan(number) else number
