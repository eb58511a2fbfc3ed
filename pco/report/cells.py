"""Tables as text, before they become HTML or Markdown."""

from dataclasses import dataclass
from typing import Literal

Tone = Literal["", "good", "bad"]


@dataclass(frozen=True)
class Cell:
    """Text, a change or remark beside it, and whether that is welcome."""

    text: str
    note: str = ""
    tone: Tone = ""


@dataclass(frozen=True)
class Column:
    """A column's heading, what it means, and whether it holds numbers."""

    label: str
    meaning: str = ""
    number: bool = True


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns; `caption` says how to read them."""

    caption: str
    columns: list[Column]
    rows: list[list[Cell]]
