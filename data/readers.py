"""Readers of the files that a run takes: of any format that `pco data import` reads, of the columns that it writes."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

from data import prompts
from data.answering import compared
from data.conversations import SAME_ANSWERS, Cell, Dropped, conversation, is_nothing, read, rendered, with_tools
from data.errors import BadInput
from data.labels import References
from data.prompts import Prompt
from data.rows import Message, UserFeedback, UserPreference
from data.sources import open_file


class Row(TypedDict):
    """A row of a prompts file, or a text of one of texts."""

    prompt_id: str
    source_id: str | None
    prompt: str
    reference: str | None
    messages: list[Message] | None


def prompt_id(prompt: Prompt) -> str:
    """The content hash that stands for a prompt in every table."""
    return hashlib.sha256(_content(prompt).encode()).hexdigest()[:16]


def prompt_key(prompt: Prompt) -> bytes:
    """The same for prompts that differ in case and whitespace alone: what the split and the leakage check go by."""
    if isinstance(prompt, str):
        normalised: Prompt = _normalised(prompt)
    else:
        normalised = [{"role": turn["role"], "content": _normalised(turn["content"])} for turn in prompt]
    return hashlib.sha256(_content(normalised).encode()).digest()[:16]


def _normalised(text: str) -> str:
    return " ".join(text.casefold().split())


def _content(prompt: Prompt) -> str:
    """A text, or a conversation as JSON, which no prompt of text may be."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)


def read_jsonl(
    path: Path, *, key: str, limit: int | None = None, references: Counter[References] | None = None
) -> list[Row]:
    """Read rows `{key: text, "id": optional, "reference": optional}`; a `prompt` may also be a list of messages.

    Returns prompt_id, source_id, the prompt as text and, of a conversation, as messages, and the reference: the right
    answer, a text or a number.

    `limit` keeps the first so many, after all lines were checked. Blank lines are skipped. Other formats have the same
    columns (the id may be called `source_id`) and the same checks. A reference of NaN is none, and counted in
    `references` with those that are given.

    Raises BadInput naming the file and line (or row) for whatever is malformed, empty, or there twice.
    """
    rows: list[Row] = []
    first_place: dict[tuple[str, str], str] = {}
    for place, raw in _objects(path):
        row = _row(raw, f"{path}, {place}", key)
        for what, name in ((row["source_id"], "id"), (row["prompt_id"], key)):
            if what is None:
                continue
            earlier = first_place.setdefault((name, what), place)
            if earlier != place:
                raise BadInput(f"{path}, {place}: the same `{name}` as in {earlier}. Remove one of the two.")
        rows.append(row)
        if references is not None and raw.get("reference") is not None:
            references["NaN" if is_nan(raw["reference"]) else "given"] += 1
    if not rows:
        raise BadInput(f'{path}: holds no rows. Expected one JSON object a line, such as {{"{key}": "..."}}.')
    return rows[:limit]


def read_feedback(path: Path) -> list[UserFeedback]:
    """Read unpaired feedback, rows `{"prompt": text or messages, "completion": text, "good": true or false}`.

    Raises BadInput naming the file and line (or row) for whatever is malformed.
    """
    rows = [_feedback_row(raw, f"{path}, {place}") for place, raw in _objects(path)]
    if not rows:
        raise BadInput(f"{path}: holds no feedback. Put rows into it, or leave `prompts.feedback` out.")
    return rows


def read_preferences(path: Path) -> list[UserPreference]:
    """Read preference pairs, rows `{"prompt": text or messages, "chosen": text, "rejected": text}`.

    Both answers may be messages: what they share is the prompt, which may then be left out, and the last turn of each
    is the answer. A row may have a `margin`: by how much chosen is better; without one it is None.

    Raises BadInput naming the file and line (or row) for whatever is malformed.
    """
    rows = [_preference_row(raw, f"{path}, {place}") for place, raw in _objects(path)]
    if not rows:
        raise BadInput(f"{path}: holds no preferences. Put rows into it, or leave `prompts.preferences` out.")
    return rows


def _preference_row(raw: dict[str, Any], where: str) -> UserPreference:
    prompt, chosen, rejected = preference(raw, where)
    return {
        "prompt_id": prompt_id(prompt),
        **prompts.columns(prompt),
        "chosen": chosen,
        "rejected": rejected,
        "margin": margin(raw.get("margin"), where),
    }


def preference(raw: Mapping[str, Any], where: str) -> tuple[Prompt, str, str]:
    """The prompt of a preference, the better and the worse answer. Raises BadInput."""
    chosen, rejected = raw.get("chosen"), raw.get("rejected")
    if isinstance(chosen, list | dict) or isinstance(rejected, list | dict):
        return _conversations(raw, where)
    answers = [text for text in (chosen, rejected) if isinstance(text, str) and text.strip()]
    if len(answers) < 2 or chosen == rejected:
        raise BadInput(
            f"{where}: expected texts under `prompt`, `chosen` and `rejected`, the last two different. Messages may "
            "stand there as well: both answers then end conversations that begin alike."
        )
    for column, text in zip(("chosen", "rejected"), answers, strict=True):
        refuse_conversation(text, column, where)
    return prompt_of(raw, where), answers[0], answers[1]


def _conversations(raw: Mapping[str, Any], where: str) -> tuple[Prompt, str, str]:
    """A preference whose answers are the last turns of two conversations that begin alike."""
    cells = [Cell(column, raw.get(column)) for column in ("prompt", "chosen", "rejected")]
    try:
        pair = compared(None if is_nothing(cells[0].value) else cells[0], cells[1], cells[2])
        if pair.chosen == pair.rejected:
            raise Dropped(SAME_ANSWERS)
        prompt = _with_tools(rendered(pair.question, "messages"), raw, where)
        return prompt, pair.chosen, pair.rejected
    except Dropped as fault:
        raise BadInput(
            f"{where}: {fault}. Expected two conversations that differ in their last turn alone, the assistant's. "
            "Correct the row, or import the file with `pco data import`, which leaves such rows out and counts them."
        ) from None


def prompt_of(raw: Mapping[str, Any], where: str) -> Prompt:
    """The prompt of a row: a text, or messages that end with a user's or a tool's turn. Raises BadInput.

    `tools` beside it, a list of schemas or its JSON text, make it a conversation.
    """
    return _with_tools(_prompt_alone(raw, where), raw, where)


def _with_tools(prompt: Prompt, raw: Mapping[str, Any], where: str) -> Prompt:
    asked = prompt if isinstance(prompt, str) else [(turn["role"], turn["content"]) for turn in prompt]
    try:
        turns = with_tools(asked, Cell(prompts.TOOLS, raw.get(prompts.TOOLS)))
    except Dropped as fault:
        raise BadInput(f"{where}: {fault}. Correct the row, or leave the column out.") from None
    return turns if isinstance(turns, str) else prompts.of_turns(turns)


def _prompt_alone(raw: Mapping[str, Any], where: str) -> Prompt:
    value = as_imported(raw).get("prompt")
    if isinstance(value, str) and value.strip():
        refuse_conversation(value, "prompt", where)
        _refuse_other_messages(value, raw, where)
        return value
    if not isinstance(value, list):
        keys = ", ".join(map(repr, raw)) or "none"
        raise BadInput(
            f"{where}: expected an object with a non-empty text under `prompt`; found keys {keys}. A list of messages "
            "may stand there as well."
        )
    try:
        turns = read(Cell("prompt", value))
        if turns and turns[-1][0] == "assistant":
            raise Dropped("a conversation that ends with an answer; leave that turn out")
        return rendered(turns, "messages")
    except Dropped as fault:
        raise BadInput(
            f"{where}: expected an object with a non-empty text under `prompt`, or a list of messages "
            "{role, content} of system, user, assistant and tool, the last a user's or a tool's; found: "
            f"{fault}. `pco data import` makes such lists of many shapes."
        ) from None


def as_imported(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A row with a conversation as its prompt, where `pco data import` wrote it out beside it."""
    messages, row = _beside(raw), dict(raw)
    if messages is not None and prompts.readable(messages) == raw["prompt"]:
        row |= {"prompt": row.pop("messages")}
    return row


def _beside(raw: Mapping[str, Any]) -> Prompt | None:
    """The conversation in the column `messages` beside a prompt of text, if it can be read and asks for an answer."""
    if not isinstance(raw.get("prompt"), str) or not isinstance(raw.get("messages"), list):
        return None
    try:
        return rendered(read(Cell("messages", raw["messages"])), "messages")
    except Dropped:
        return None


def _refuse_other_messages(prompt: str, raw: Mapping[str, Any], where: str) -> None:
    """Raises BadInput where `messages` beside a text is another prompt; messages that end with an answer are none."""
    messages = _beside(raw)
    if messages is not None and messages != prompt:
        raise BadInput(
            f"{where}: `prompt` and `messages` are different prompts. Leave one of them out; a list of messages may "
            "stand under `prompt`."
        )


def refuse_conversation(text: str, column: str, where: str) -> None:
    """Raises BadInput for a text that is a conversation written as text, which would be trained on as it stands.

    A prompt may be a transcript, which `pco data import --turns transcript` writes; an answer may not.
    """
    try:
        said = read(Cell(column, text))
        said = said if column == "prompt" else conversation(said)
    except Dropped:  # only like a conversation; an answer may be about one
        return
    if isinstance(said, list):
        raise BadInput(
            f"{where}: `{column}` is a conversation written as text. Import the file with `pco data import` first; it "
            "reads conversations."
        )


def margin(found: object, where: str) -> float | None:
    """By how much chosen is better, if the row tells. Raises BadInput."""
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        raise BadInput(f"{where}: expected a finite number or nothing under `margin`; found {found!r}.")
    return float(found)


def _feedback_row(raw: dict[str, Any], where: str) -> UserFeedback:
    if not isinstance(raw.get("good"), bool):
        raise BadInput(f"{where}: expected true or false under `good`; found {raw.get('good')!r}.")
    prompt, completion = prompt_of(raw, where), _text(raw, where, "completion")
    refuse_conversation(completion, "completion", where)
    return {
        "prompt_id": prompt_id(prompt),
        **prompts.columns(prompt),
        "completion": completion,
        "good": raw["good"],
    }


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a file with their places; blank lines are skipped. A file whose name tells no format is JSONL."""
    try:
        path.stat()
    except FileNotFoundError:
        raise BadInput(
            f"{path}: no such file. Name an existing JSONL or Parquet file in the config's `prompts`."
        ) from None
    except OSError as error:
        raise BadInput(f"{path}: could not be read ({error.strerror}).") from None
    source = open_file(path, fallback=".jsonl")
    for number, raw in source.rows:
        yield f"{source.unit} {number}", raw


def _text(raw: Mapping[str, Any], where: str, key: str) -> str:
    text = raw.get(key)
    if not isinstance(text, str) or not text.strip():
        keys = ", ".join(map(repr, raw)) or "none"
        raise BadInput(f"{where}: expected an object with a non-empty text under `{key}`; found keys {keys}.")
    return text


def _row(raw: dict[str, Any], where: str, key: str) -> Row:
    prompt = prompt_of(raw, where) if key == "prompt" else _text(raw, where, key)
    source = raw.get("id", raw.get("source_id"))
    return {
        "prompt_id": prompt_id(prompt),
        "source_id": None if source is None else str(source),
        **prompts.columns(prompt),
        "reference": reference(raw.get("reference"), where),
    }


def of_imported_prompt(row: Mapping[str, Any]) -> Row:
    """A prompt as `pco data import` makes it."""
    return {
        "prompt_id": row["prompt_id"],
        "source_id": row["source_id"],
        "prompt": row["prompt"],
        "reference": row["reference"],
        "messages": row["messages"],
    }


def of_imported_preference(row: Mapping[str, Any]) -> UserPreference:
    """A preference as `pco data import` makes it."""
    return {
        "prompt_id": row["prompt_id"],
        "prompt": row["prompt"],
        "chosen": row["chosen"],
        "rejected": row["rejected"],
        "margin": row["margin"],
        "messages": row["messages"],
    }


def of_imported_feedback(row: Mapping[str, Any]) -> UserFeedback:
    """A rated completion as `pco data import` makes it."""
    return {
        "prompt_id": row["prompt_id"],
        "prompt": row["prompt"],
        "completion": row["completion"],
        "good": row["good"],
        "messages": row["messages"],
    }


def is_nan(value: object) -> bool:
    """Whether a right answer is NaN, which is how tables of numbers write that there is none."""
    return isinstance(value, float) and math.isnan(value)


def reference(found: object, where: str) -> str | None:
    """The right answer as text, a number as JSON writes it; None where there is none. Raises BadInput."""
    if found is None or is_nan(found):
        return None
    known = isinstance(found, str | int | float) and not isinstance(found, bool)
    if not known or not str(found).strip() or found in {math.inf, -math.inf}:
        raise BadInput(f"{where}: expected a text or a number under `reference`; found {found!r}.")
    return str(found)
