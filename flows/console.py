"""How commands speak: options that several have, errors that a user can act on, and rows of a table."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data.errors import AwaitsAnswer, PCOError, Skipped
from data.visible import visible

if TYPE_CHECKING:
    from pco.report import cells

RunsDir = Annotated[Path, typer.Option(help="Folder that holds all runs.", envvar="PCO_RUNS_DIR")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a value: text where the setting is a text, else YAML, e.g. `--set train.learning_rate=1e-5`.",
    ),
]

KEPT = "What is finished is kept; the same command resumes."
console = Console(emoji=False)  # texts of models and users are shown as they are, `:x:` included
errors = Console(stderr=True, emoji=False)


@contextmanager
def clear_errors(interrupted: str) -> Iterator[None]:
    """What a user can act on is one message and status 2; anything else is a bug and keeps its traceback."""
    try:
        yield
    except AwaitsAnswer as waiting:
        errors.print(f"[bold yellow]waiting:[/] {escape(str(waiting))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except Skipped as skipped:
        say(str(skipped))
    except PCOError as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        errors.print(f"Interrupted. {interrupted}", highlight=False)
        raise typer.Exit(130) from None


def say(line: str) -> None:
    """A line as it is, however wide."""
    console.print(line, soft_wrap=True, highlight=False, markup=False)


def print_table(content: "cells.Table") -> None:
    """A table of a report."""
    labels = [escape(column.label) for column in content.columns]
    table = Table(*labels, title=escape(content.caption), title_justify="left")
    for row in content.rows:
        table.add_row(*(escape(cell.text) for cell in row))
    console.print(table)


def print_rows(rows: Iterable[Mapping[str, Any]]) -> None:
    """Each row as a small table of its columns."""
    for i, row in enumerate(rows):
        grid = Table.grid(padding=(0, 1))
        for column, value in row.items():
            grid.add_row(f"[dim]{column}[/]", escape(_shown(value)))
        console.print(f"[dim]— {i} —[/]", grid, sep="\n")


def _shown(value: object) -> str:
    """A value as text: a conversation turn by turn; of token ids, which say little, their number."""
    if not isinstance(value, list):
        return visible(str(value))
    if value and all(isinstance(turn, dict) and "content" in turn for turn in value):
        return visible("\n".join(f"[{turn.get('role')}] {turn['content']}" for turn in value))
    if value and all(isinstance(item, int) for item in value):
        return f"<{len(value)} tokens>"
    return visible(str(value))
