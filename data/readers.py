"""Readers of the files that a run takes: of any format that `pco data import` reads, of the columns that it writes."""

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.conversations import Cell, Dropped, conversation, read
from data.errors import BadInput
from data.sources import open_file

Row = dict[str, str | None]


def prompt_id(text: str) -> str:
    """The content hash that stands for a prompt in every table."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prompt_key(prompt: str) -> bytes:
    """The same for prompts that differ in case and whitespace alone: what the split and the leakage check go by."""
    return hashlib.sha256(" ".join(prompt.casefold().split()).encode()).digest()[:16]


def read_jsonl(path: Path, *, key: str, limit: int | None = None) -> list[Row]:
    """Read rows `{key: text, "id": optional, "reference": optional}`.

    Returns prompt_id, source_id, the text as `prompt`, and the reference: the right answer, a text or a number.

    `limit` keeps the first so many, after all lines were checked. Blank lines are skipped. Other formats have the same
    columns (the id may be called `source_id`) and the same checks. A reference of NaN is none.

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
    if not rows:
        raise BadInput(f'{path}: holds no rows. Expected one JSON object a line, such as {{"{key}": "..."}}.')
    return rows[:limit]


def read_feedback(path: Path) -> list[dict[str, Any]]:
    """Read unpaired feedback, rows `{"prompt": text, "completion": text, "good": true or false}`.

    Raises BadInput naming the file and line (or row) for whatever is malformed.
    """
    rows = [_feedback_row(raw, f"{path}, {place}") for place, raw in _objects(path)]
    if not rows:
        raise BadInput(f"{path}: holds no feedback. Put rows into it, or leave `prompts.feedback` out.")
    return rows


def read_preferences(path: Path) -> list[dict[str, Any]]:
    """Read preference pairs, rows `{"prompt": text, "chosen": text, "rejected": text}`.

    A row may have a `margin`: by how much chosen is better; without one it is None.

    Raises BadInput naming the file and line (or row) for whatever is malformed.
    """
    rows = [_preference_row(raw, f"{path}, {place}") for place, raw in _objects(path)]
    if not rows:
        raise BadInput(f"{path}: holds no preferences. Put rows into it, or leave `prompts.preferences` out.")
    return rows


def _preference_row(raw: dict[str, Any], where: str) -> dict[str, Any]:
    texts = [raw.get(key) for key in ("prompt", "chosen", "rejected")]
    if not all(isinstance(text, str) and text.strip() for text in texts) or texts[1] == texts[2]:
        raise BadInput(f"{where}: expected texts under `prompt`, `chosen` and `rejected`, the last two different.")
    prompt, chosen, rejected = map(str, texts)
    for column, text in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected)):
        refuse_conversation(text, column, where)
    return {
        "prompt_id": prompt_id(prompt),
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "margin": margin(raw.get("margin"), where),
    }


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


def _feedback_row(raw: dict[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(raw.get("good"), bool):
        raise BadInput(f"{where}: expected true or false under `good`; found {raw.get('good')!r}.")
    prompt, completion = (_row(raw, where, key)["prompt"] for key in ("prompt", "completion"))
    refuse_conversation(str(completion), "completion", where)
    return {"prompt_id": prompt_id(str(prompt)), "prompt": prompt, "completion": completion, "good": raw["good"]}


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


def _row(raw: dict[str, Any], where: str, key: str) -> Row:
    text = raw.get(key)
    if not isinstance(text, str) or not text.strip():
        keys = ", ".join(map(repr, raw)) or "none"
        raise BadInput(f"{where}: expected an object with a non-empty text under `{key}`; found keys {keys}.")
    if key == "prompt":
        refuse_conversation(text, key, where)
    source = raw.get("id", raw.get("source_id"))
    return {
        "prompt_id": prompt_id(text),
        "source_id": None if source is None else str(source),
        "prompt": text,
        "reference": reference(raw.get("reference"), where),
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
