"""A prompt, preference or feedback file held to what its kind needs, and two files held against each other."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data import prompts, sources
from data.detecting import Kind
from data.errors import BadInput
from data.importing import Written, content_key
from data.readers import (
    as_imported,
    is_nan,
    margin,
    preference,
    prompt_id,
    prompt_key,
    prompt_of,
    reference,
    refuse_conversation,
)

_ANSWERS: dict[Kind, tuple[str, ...]] = {
    "preferences": ("chosen", "rejected"),
    "feedback": ("completion",),
    "prompts": (),
}


@dataclass(frozen=True)
class Checked:
    """What a valid file holds."""

    path: Path
    kind: Kind
    content: Written
    duplicates: int  # rows that say what an earlier one says
    references: int  # rows with a right answer
    not_numbers: int  # right answers of NaN, which count as none
    places: Mapping[bytes, str] = field(repr=False)  # where each normalised prompt is first


def check_file(path: Path) -> Checked:
    """Read a whole file of any format that can be imported, and check each row. Its kind is told by its columns.

    Raises BadInput naming the file and the first row that cannot be right.
    """
    source = sources.open_source(str(path))
    written, seen, duplicates = Written(path), set[bytes](), 0
    places: dict[bytes, str] = {}
    references = not_numbers = 0
    kind: Kind | None = None
    for number, raw in source.rows:
        kind = kind or _kind(path, raw)
        where = source.where(number)
        row = _checked_row(kind, _renamed(raw), where)
        written.count(row)
        key = content_key(row)
        duplicates += key in seen
        seen.add(key)
        not_numbers += is_nan(row.get("reference"))
        references += reference(row.get("reference"), where) is not None
        places.setdefault(prompt_key(prompts.asked(row)), f"{source.unit} {number}")
    if kind is None:
        raise BadInput(f"{path}: holds no rows. Expected prompts, preferences or feedback.")
    return Checked(path, kind, written, duplicates, references, not_numbers, places)


def refuse_leakage(one: Checked, other: Checked) -> None:
    """Raises BadInput naming the first prompt that is in both files, case and whitespace aside, and how many are."""
    shared = [key for key in one.places if key in other.places]
    if shared:
        raise BadInput(
            f"{one.path} and {other.path}: {len(shared):,} prompts are in both (case and whitespace aside), first in "
            f"{one.places[shared[0]]} of the one and {other.places[shared[0]]} of the other. Evaluation on training "
            "prompts proves nothing: remove them from one file, or split with `pco data import --heldout-share`."
        )


def _renamed(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Texts for perplexity are checked as prompts are."""
    return {"prompt": raw["text"], **raw} if "text" in raw and "prompt" not in raw else dict(raw)


def _kind(path: Path, raw: Mapping[str, Any]) -> Kind:
    columns = set(_renamed(raw))
    if {"chosen", "rejected"} & columns:
        return "preferences"
    if {"completion", "good"} & columns:
        return "feedback"
    if "prompt" in columns:
        return "prompts"
    raise BadInput(
        f"{path}: columns {', '.join(raw)}. Expected prompt; prompt, chosen and rejected; or prompt, completion and "
        "good. Make such a file with `pco data import`."
    )


def _checked_row(kind: Kind, raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A row with its prompt as a table holds it, and its answers as texts. Raises BadInput."""
    row = {**raw, **_texts(kind, raw, where)}
    if kind == "preferences":
        margin(row.get("margin"), where)
        if row["chosen"] == row["rejected"]:
            raise BadInput(f"{where}: chosen equals rejected, so nothing is preferred. Remove the row.")
    if kind == "feedback" and not isinstance(row.get("good"), bool):
        raise BadInput(
            f"{where}: expected true or false under `good`; found {_brief(row.get('good'))}. Correct the row."
        )
    own, expected = row.get("prompt_id"), prompt_id(prompts.asked(row))
    if own is not None and own != expected:
        raise BadInput(
            f"{where}: `prompt_id` is {_brief(own)}, but its prompt's is {expected}. The prompt was changed after the "
            "import: leave `prompt_id` out, or import the file again."
        )
    return row


def _texts(kind: Kind, row: Mapping[str, Any], where: str) -> dict[str, Any]:
    if any(isinstance(row.get(column), list | dict) for column in _ANSWERS[kind]) and kind == "preferences":
        prompt, chosen, rejected = preference(row, where)
        return {**prompts.columns(prompt), "chosen": chosen, "rejected": rejected}
    texts = {"prompt": as_imported(row).get("prompt"), **{column: row.get(column) for column in _ANSWERS[kind]}}
    for column, text in texts.items():
        if column == "prompt" and isinstance(text, list):
            continue
        if not isinstance(text, str) or not text.strip():
            raise BadInput(
                f"{where}: expected a non-empty text under `{column}`; found {_brief(text)}. Correct the row."
            )
        refuse_conversation(text, column, where)
    return {**texts, **prompts.columns(prompt_of(row, where))}


def _brief(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
