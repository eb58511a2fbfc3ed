"""A file that names prompts of a run, by their ids or texts: a request to delete data, or what a bad source held."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import sources
from data.errors import BadInput
from data.prompts import Prompt
from data.readers import prompt_id, prompt_of

_TEXT = (".txt",)
# Of files of answers: whether the prompt is meant, or this one answer to it, is not said.
_ANSWERS = ("chosen", "rejected", "completion", "good")


@dataclass(frozen=True)
class Named:
    """What a row of the file names: an id, a prompt, or, of a line of text, either."""

    where: str
    id: str | None
    prompt: Prompt | None


def read_named(path: Path) -> list[Named]:
    """The rows of a file: JSONL, JSON, CSV or Parquet with `prompt_id` or `prompt` (of human texts `text`), or lines.

    A text file (.txt) has an id or a whole prompt on each line.

    Raises BadInput naming the file and line of what names nothing, or might mean more than one thing.
    """
    if path.suffix.lower() in _TEXT:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{path}: could not be read ({error}).") from error
        named = [Named(f"{path}, line {i}", text, text) for i, text in enumerate(lines, start=1) if text.strip()]
    else:
        source = sources.open_file(path)
        named = [_named(raw, source.where(number)) for number, raw in source.rows]
    if not named:
        raise BadInput(f"{path}: names nothing. Expected a prompt, or its id, on each line.")
    return named


def _named(raw: Mapping[str, Any], where: str) -> Named:
    answers = [column for column in _ANSWERS if raw.get(column) is not None]
    if answers:
        raise BadInput(
            f"{where}: has `{answers[0]}`. A prompt goes with all pairs and feedback on it, never one answer alone: "
            "leave only `prompt_id` or `prompt` in the rows if that is meant."
        )
    own = raw.get("prompt_id")
    texts = [column for column in ("prompt", "text", "messages") if raw.get(column) is not None]
    if {"prompt", "text"} <= set(texts):
        raise BadInput(f"{where}: has `prompt` and `text`. Which of them is meant? Leave the other out.")
    if own is not None and not isinstance(own, str):
        raise BadInput(f"{where}: `prompt_id` is {own!r}; expected the id as pco writes it, 16 hexadecimal digits.")
    if not texts and own is None:
        raise BadInput(f"{where}: has {', '.join(raw) or 'nothing'}. Expected `prompt_id`, `prompt` or `text`.")
    if not texts:
        return Named(where, own, None)
    prompt = prompt_of({"prompt": raw["text"]} if "text" in texts else raw, where)
    if own is not None and own != prompt_id(prompt):
        raise BadInput(f"{where}: `prompt_id` is {own}, but that of its prompt is {prompt_id(prompt)}. Which is meant?")
    return Named(where, own, prompt)
