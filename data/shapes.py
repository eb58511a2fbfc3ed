"""What each row of outside data says, as rows of the schema `IMPORTED[kind]`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from data import labels, prompts, ranking
from data.answering import Compared, answered, compared, ended, with_messages
from data.conversations import (
    MEDIA,
    NO_PREFERENCE,
    SAME_ANSWERS,
    SEVERAL_TURNS,
    Cell,
    Dropped,
    Message,
    Question,
    Turns,
    is_nothing,
    malformed,
    question,
    read,
    rendered,
    rendered_answer,
    with_system,
    with_tools,
)
from data.detecting import GENERATORS, IDS, MEDIA_COLUMNS, MESSAGES, PARTS, REFERENCE, SYSTEMS, Shape
from data.errors import BadInput
from data.labels import Coding, Notes, Place
from data.prompts import Prompt
from data.ranking import Pairs
from data.readers import as_imported, is_nan, prompt_id, reference

Extracted = list[dict[str, Any] | Dropped]


@dataclass(frozen=True)
class Reading:
    """How the rows of a shape are read, and what is noted meanwhile."""

    shape: Shape
    turns: Turns = "messages"
    pairs: Pairs = "best_worst"
    coding: Coding = field(default_factory=dict)
    notes: Notes = field(default_factory=Notes)


def extract(reading: Reading, raw: Mapping[str, Any], *, where: str) -> Extracted:
    """What a row says: one row, several where it ranks several answers, or the reason why it cannot be kept.

    Raises BadInput naming `where` for a label of unknown meaning, for bytes that are no text, and for a column that
    may be a part of the prompt: to guess would be to train on something else than what was meant.
    """
    shape = reading.shape
    raw = as_imported(raw)
    try:
        _refuse_bytes(shape, raw, where)
        for column in shape.needs:
            if column not in raw:
                raise Dropped(f"malformed: no `{column}`")
        match shape.kind:
            case "prompts":
                prompt = rendered(_prompt(shape, raw, where), reading.turns)
                return [{**_with_ids(raw, prompt), REFERENCE: _reference(raw, reading.notes)}]
            case "preferences":
                return _preferences(reading, raw, where)
            case _:
                return [_feedback(reading, raw, where)]
    except Dropped as drop:
        return [drop]


def _refuse_bytes(shape: Shape, raw: Mapping[str, Any], where: str) -> None:
    for column in shape.uses:
        if isinstance(raw.get(column), bytes):
            raise BadInput(f"{where}: `{column}` holds bytes that are not UTF-8. Expected text: convert the column.")


def _with_ids(raw: Mapping[str, Any], prompt: Prompt) -> dict[str, Any]:
    source = next((raw[name] for name in IDS if raw.get(name) not in (None, "")), None)
    return {
        "prompt_id": prompt_id(prompt),
        "source_id": None if source is None else str(source),
        **prompts.columns(prompt),
    }


def _reference(raw: Mapping[str, Any], notes: Notes) -> str | None:
    """The right answer of a row, a number as the source gives it; NaN and nothing are none, and counted."""
    if REFERENCE not in raw:
        return None
    value = raw[REFERENCE]
    if is_nothing(value) or (isinstance(value, str) and not value.strip()):
        notes.references["NaN" if is_nan(value) else "empty"] += 1
        return None
    try:
        text = reference(value, "")
    except BadInput:
        raise malformed(Cell(REFERENCE, value), "a text or a finite number") from None
    notes.references["given"] += 1
    return text


def _prompt(shape: Shape, raw: Mapping[str, Any], where: str) -> Question:
    """The question of a row that is a prompt alone, system message included."""
    cell = _prompt_cell(shape, raw, where)
    return _whole(question(Cell("prompt", "")) if cell is None else question(cell), raw)


def _prompt_cell(shape: Shape, raw: Mapping[str, Any], where: str) -> Cell | None:
    """The prompt column with what belongs to its text."""
    if shape.prompt is None:
        return None
    cell = Cell(shape.prompt, raw[shape.prompt])
    _refuse_parts(shape, cell, raw, where)
    match shape.name, cell.value:
        case "turns", list():
            return _turns(cell)
        case _ if shape.prompt == "instruction":
            return _instruction(cell, raw)
    return cell


def _turns(cell: Cell) -> Cell:
    """What a user says turn by turn, as mt_bench has it. Without the answers between, only one turn is a prompt."""
    if len(cell.value) > 1:
        raise Dropped(SEVERAL_TURNS)
    return Cell(cell.column, next(iter(cell.value), None))


def _refuse_parts(shape: Shape, prompt: Cell, raw: Mapping[str, Any], where: str) -> None:
    for column in PARTS:
        part = raw.get(column)
        if column in shape.uses or is_nothing(part) or not part or (isinstance(part, str) and not part.strip()):
            continue
        if isinstance(part, str) and isinstance(prompt.value, str) and part.strip() in prompt.value:
            continue
        names = {prompt.column: "instruction", column: "input"}
        maps = " ".join(f"--map {theirs}={name}" for theirs, name in names.items())
        raise BadInput(
            f"{where}: `{column}` may be a part of the prompt beside `{prompt.column}`. Join the two with {maps}, or "
            f"leave it out with --ignore {column}."
        )


def _instruction(cell: Cell, raw: Mapping[str, Any]) -> Cell:
    """Instruction and input as Alpaca joins them: a blank line between."""
    about = Cell("input", _input(raw))
    if is_nothing(about.value) or about.value == []:
        return cell
    if not isinstance(about.value, str):
        raise malformed(about, "a text")
    if not about.value.strip() or not isinstance(cell.value, str) or not cell.value.strip():
        return cell
    return Cell(cell.column, f"{cell.value}\n\n{about.value}")


def _input(raw: Mapping[str, Any]) -> Any:
    """What an instruction is about; Self-Instruct has it in its first instance."""
    match raw.get("instances"):
        case [{"input": text}, *_] if "input" not in raw:
            return text
    return raw.get("input")


def _agreed(shape: Shape, asked: Question, raw: Mapping[str, Any]) -> Question:
    """A question with what the columns of messages beside it say more."""
    for column in MESSAGES:
        if column in shape.takes and column in raw:
            asked = with_messages(asked, Cell(column, raw[column]))
    return asked


def _whole(asked: Question, raw: Mapping[str, Any]) -> Question:
    """A question with the earlier turns, the system message and the tools of columns of their own.

    Raises Dropped for pictures, which no table holds.
    """
    if any(not is_nothing(raw.get(column)) and raw[column] not in ([], "[]") for column in MEDIA_COLUMNS):
        raise Dropped(MEDIA)
    earlier = _history(Cell("history", raw.get("history")))
    turns = [("user", asked)] if isinstance(asked, str) else asked
    if earlier and turns[: len(earlier)] != earlier:
        if len(turns) > 1:
            raise Dropped("`history` contradicts the conversation")
        asked = [*earlier, *turns]
    for column in SYSTEMS:
        asked = with_system(asked, Cell(column, raw[column]) if column in raw else None)
    return with_tools(asked, Cell(prompts.TOOLS, raw.get(prompts.TOOLS)))


def _history(cell: Cell) -> list[Message]:
    """Earlier turns as LLaMA-Factory has them, pairs of question and answer; or as messages."""
    if is_nothing(cell.value) or cell.value in ([], "[]"):
        return []
    pairs = cell.value if isinstance(cell.value, list) else []
    if pairs and all(_is_exchange(pair) for pair in pairs):
        return list(chain.from_iterable((("user", asked), ("assistant", answer)) for asked, answer in pairs))
    said = read(cell)
    if isinstance(said, str):
        raise malformed(cell, "pairs of question and answer, or messages")
    return said


def _is_exchange(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)


def _preferences(reading: Reading, raw: Mapping[str, Any], where: str) -> Extracted:
    shape, prompt = reading.shape, _prompt_cell(reading.shape, raw, where)
    match shape.name:
        case "output pairs" | "strengths":
            return [_output_pair(reading, prompt, raw, where)]
        case "ranked answers":
            return _ranked(reading, prompt, raw, where)
    pair = compared(prompt, Cell("chosen", raw["chosen"]), Cell("rejected", raw["rejected"]))
    generators = (raw.get(GENERATORS[0]), raw.get(GENERATORS[1]))
    return [_row(reading, raw, pair, margin=_margin(raw, where), generators=generators)]


def _margin(raw: Mapping[str, Any], where: str) -> float | None:
    """The source's own margin, or the difference of its scores."""
    if raw.get("margin") is not None:
        return labels.number(raw["margin"], "margin", where)
    chosen, rejected = (labels.number(raw.get(name), name, where) for name in ("score_chosen", "score_rejected"))
    return None if chosen is None or rejected is None else chosen - rejected


def _output_pair(reading: Reading, prompt: Cell | None, raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Two outputs and which is better."""
    shape = reading.shape
    _, *outputs, column = shape.needs
    place = Place(where, column, reading.coding, reading.notes, shape.zero_is_tie)
    better, margin = (labels.strength if shape.name == "strengths" else labels.preference)(raw[column], place)
    order = (0, 1) if better == "first" else (1, 0)
    chosen, rejected = (Cell(outputs[i], raw[outputs[i]]) for i in order)
    generators = tuple(raw.get(f"generator_{i + 1}") for i in order)
    return _row(
        reading, raw, compared(prompt, chosen, rejected), margin=margin, generators=(generators[0], generators[1])
    )


def _ranked(reading: Reading, prompt: Cell | None, raw: Mapping[str, Any], where: str) -> Extracted:
    """Pairs of several answers. A pair that cannot be kept is a reason in its place."""
    column = reading.shape.needs[-1]
    answers = ranking.candidates(Cell(column, raw[column]), raw, reading.notes, where)
    rows: Extracted = []
    for pair in ranking.paired(answers, reading.pairs):
        if isinstance(pair, Dropped):
            rows.append(pair)
            continue
        better, worse = pair
        try:
            words = compared(prompt, better.answer, worse.answer)
            generators = (better.generator, worse.generator)
            rows.append(_row(reading, raw, words, margin=better.worth - worse.worth, generators=generators))
        except Dropped as drop:
            rows.append(drop)
    return rows


def _row(
    reading: Reading, raw: Mapping[str, Any], pair: Compared, *, margin: float | None, generators: tuple[Any, Any]
) -> dict[str, Any]:
    asked = _whole(_agreed(reading.shape, pair.question, raw), raw)
    prompt = rendered(asked, reading.turns)
    chosen, rejected = (rendered_answer(asked, answer, reading.turns) for answer in (pair.chosen, pair.rejected))
    if chosen == rejected:
        raise Dropped(SAME_ANSWERS)
    if margin == 0:
        raise Dropped(NO_PREFERENCE)
    reading.notes.repeated += pair.repeated
    return {
        **_with_ids(raw, prompt),
        "chosen": chosen,
        "rejected": rejected,
        "margin": margin,
        **dict(zip(GENERATORS, map(_name, generators), strict=True)),
    }


def _name(value: Any) -> str | None:
    return None if value in (None, "") else str(value)


def _feedback(reading: Reading, raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    shape, prompt = reading.shape, _prompt_cell(reading.shape, raw, where)
    *_, column = shape.needs
    if shape.name == "conversation":
        asked, completion = ended(prompt or Cell("messages", None))
    else:
        asked, completion = answered(prompt, Cell(shape.needs[1], raw[shape.needs[1]]))
    asked = _whole(_agreed(shape, asked, raw), raw)
    text, completion = rendered(asked, reading.turns), rendered_answer(asked, completion, reading.turns)
    good = labels.goodness(raw[column], Place(where, column, reading.coding, reading.notes))
    return {**_with_ids(raw, text), "completion": completion, "good": good}
