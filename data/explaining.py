"""What the first rows of a source would become, before anything is written."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from data import prompts
from data.conversations import Dropped
from data.detecting import Kind, Shape
from data.errors import BadInput
from data.importing import TEXTS, Opened, Request, open_request

_ROWS = 5
_SHOWN = 240  # characters of a text; of a longer one its beginning and its end
_KINDS: tuple[Kind, ...] = ("preferences", "feedback", "prompts")  # the first whose columns are there


@dataclass(frozen=True)
class ExplainedRow:
    """A row of the source: the columns that it gives as JSON, or why it would be dropped."""

    place: str
    columns: Mapping[str, str]
    dropped: str = ""


@dataclass(frozen=True)
class Explained:
    """How a source would be read."""

    kind: Kind
    shape: Shape
    used: tuple[str, ...]
    unused: tuple[str, ...]
    rows: tuple[ExplainedRow, ...]


def explain(request: Request, *, told_kind: bool = False) -> Explained:
    """How the source of a request would be read; `told_kind`: its kind is told by its columns.

    Raises BadInput for what an import would refuse in those rows.
    """
    opened = _of_any_kind(request) if told_kind else open_request(request)
    rows = []
    for number, raw in islice(opened.rows, _ROWS):
        place = f"{opened.source.unit} {number}"
        for outcome in opened.extract(number, raw):
            dropped = str(outcome) if isinstance(outcome, Dropped) else ""
            rows.append(ExplainedRow(place, {} if isinstance(outcome, Dropped) else _shown(outcome), dropped))
    shape = opened.reading.shape
    return Explained(opened.request.kind, shape, opened.used(), opened.unused(), tuple(rows))


def _of_any_kind(request: Request) -> Opened:
    faults = []
    for kind in _KINDS:
        try:
            return open_request(replace(request, kind=kind))
        except BadInput as fault:
            faults.append(fault)
    raise faults[0]


def _shown(row: Mapping[str, Any]) -> dict[str, str]:
    """The texts and what goes with them, as JSON; a conversation as its messages."""
    said = {**row, "prompt": prompts.asked(row)}
    return {
        column: _cut(said[column]) for column in (*TEXTS, "good", "margin", "reference") if said.get(column) is not None
    }


def _cut(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    if len(text) <= _SHOWN:
        return text
    length = len(value) if isinstance(value, str) else len(text)
    return f"{text[: _SHOWN // 2]} ({length:,} characters in all) {text[-_SHOWN // 2 :]}"
