"""Readers of public benchmarks of reward models: RewardBench (arXiv 2403.13787) and RewardBench 2 (arXiv 2506.01937).

A row of RewardBench has `prompt`, `chosen`, `rejected` and `subset`: texts. A row of RewardBench 2 has lists under
`chosen` and `rejected`, and `num_correct`, the length of the former: one, but in the subset Ties. There an `id` such as
`tied:7` names a prompt of several right answers, and `ref:7` the like prompt of a single one.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data import prompts
from data.errors import BadInput
from data.prompts import Prompt
from data.readers import prompt_id, prompt_of
from data.rows import Message
from data.sources import Source, open_file

TIES = "ties"  # the subset's name, in lower case
_TIES_ID = re.compile(r"(ref|tied):(\d+)")
_COLUMNS = "`prompt`, `chosen`, `rejected` and `subset`"

Shape = Literal["RewardBench", "RewardBench 2"]


@dataclass(frozen=True)
class Item:
    """A prompt with its right and its wrong answers.

    `tie` is the kind (`ref` or `tied`) and the number of a prompt of RewardBench 2's subset Ties, None elsewhere.
    """

    place: str
    source_id: str | None
    subset: str
    prompt_id: str
    prompt: str
    messages: list[Message] | None
    correct: list[str]
    incorrect: list[str]
    tie: tuple[str, int] | None


def read(paths: Sequence[Path]) -> list[Item]:
    """The items of files, all rows of a file of one shape.

    Raises BadInput naming the file and line (or row) of whatever does not fit, or of a prompt of Ties without the other
    of its number.
    """
    items: list[Item] = []
    for path in paths:
        items += _read_file(path)
    _check_ties(items)
    return items


def _read_file(path: Path) -> list[Item]:
    if not path.is_file():
        raise BadInput(f"{path}: no such file. Name a JSONL, JSON, CSV or Parquet file with {_COLUMNS} in each row.")
    source = open_file(path, fallback=".jsonl")
    shape: Shape | None = None
    items = []
    for number, raw in source.rows:
        where = source.where(number)
        found = _shape(raw, where)
        if shape not in {None, found}:
            raise BadInput(f"{where}: is a row of {found}, those before it are of {shape}. Put them into two files.")
        shape = found
        items.append(_item(raw, where, found, source))
    if not items:
        raise BadInput(f"{path}: holds no rows. Expected {_COLUMNS} in each.")
    return items


def _shape(raw: Mapping[str, Any], where: str) -> Shape:
    missing = [name for name in ("prompt", "chosen", "rejected", "subset") if raw.get(name) is None]
    if missing:
        keys = ", ".join(map(repr, raw)) or "none"
        raise BadInput(f"{where}: has no `{missing[0]}`; expected {_COLUMNS} as in RewardBench. Found keys {keys}.")
    kinds = {isinstance(raw[name], list) for name in ("chosen", "rejected")}
    if len(kinds) > 1:
        raise BadInput(
            f"{where}: one of `chosen` and `rejected` is a list. Expected two texts (RewardBench) or two lists of "
            "texts (RewardBench 2)."
        )
    return "RewardBench 2" if kinds == {True} else "RewardBench"


def _item(raw: Mapping[str, Any], where: str, shape: Shape, source: Source) -> Item:
    prompt = _prompt(raw, where)
    correct, incorrect = (_texts(raw[name], name, where) for name in ("chosen", "rejected"))
    subset, source_id = raw["subset"], raw.get("id")
    if not isinstance(subset, str) or not subset.strip():
        raise BadInput(f"{where}: expected a name under `subset`; found {subset!r}.")
    tie = None
    if shape == "RewardBench 2":
        _check_count(raw, "num_correct", len(correct), where)
        tie = _tie(source_id, len(correct), where) if subset.lower() == TIES else None
        if tie is None and len(correct) != 1:
            raise BadInput(
                f"{where}: {len(correct)} texts under `chosen` in the subset {subset!r}; only Ties has several right "
                "answers."
            )
    return Item(
        place=where,
        source_id=None if source_id is None else str(source_id),
        subset=subset,
        prompt_id=prompt_id(prompt),
        **prompts.columns(prompt),
        correct=correct,
        incorrect=incorrect,
        tie=tie,
    )


def _prompt(raw: Mapping[str, Any], where: str) -> Prompt:
    """A text is taken as it is, also one that looks like a conversation: so does the benchmark."""
    prompt = raw["prompt"]
    if isinstance(prompt, str) and prompt.strip():
        return prompt
    return prompt_of(raw, where)


def _texts(value: object, name: str, where: str) -> list[str]:
    cells = value if isinstance(value, list) else [value]
    texts = [text for text in cells if isinstance(text, str)]
    if not texts or len(texts) < len(cells):
        raise BadInput(f"{where}: expected a text under `{name}`, or a list of at least one; found {value!r:.200}.")
    return texts


def _check_count(raw: Mapping[str, Any], name: str, count: int, where: str) -> None:
    if raw.get(name) != count:
        raise BadInput(f"{where}: `{name}` is {raw.get(name)!r}, but there are {count} texts under `chosen`.")


def _tie(source_id: object, correct: int, where: str) -> tuple[str, int]:
    match = _TIES_ID.fullmatch(str(source_id))
    if match is None:
        raise BadInput(f"{where}: expected an `id` such as ref:7 or tied:7 in the subset Ties; found {source_id!r}.")
    kind, number = match[1], int(match[2])
    if (correct == 1) != (kind == "ref"):
        raise BadInput(
            f"{where}: {source_id} has {correct} texts under `chosen`; expected one of a `ref`, several of a `tied`."
        )
    return kind, number


def _check_ties(items: Sequence[Item]) -> None:
    """Each prompt of Ties is there once, beside the other of its number."""
    places: dict[tuple[str, int], str] = {}
    for item in items:
        if item.tie is None:
            continue
        if item.tie in places:
            raise BadInput(f"{item.place}: {item.source_id} is there twice, first in {places[item.tie]}.")
        places[item.tie] = item.place
    for (kind, number), place in places.items():
        other = "tied" if kind == "ref" else "ref"
        if (other, number) not in places:
            raise BadInput(f"{place}: {kind}:{number} has no {other}:{number}; Ties are scored by such pairs.")
