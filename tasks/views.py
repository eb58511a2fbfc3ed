"""Views of a stage's progress: bars in a terminal, or plain lines in the run's log."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, Protocol

from prefect.logging import get_run_logger
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from pco.progress import Progress

_LINE_EVERY_S = 10.0


class Left(NamedTuple):
    """Seconds that a stage and its whole run still take, as far as that can be told."""

    stage_s: float | None = None
    run_s: float | None = None

    def __str__(self) -> str:
        stage = f"ETA {duration(self.stage_s)}" if self.stage_s is not None else ""
        run = f"whole run about {duration(self.run_s)}" if self.run_s is not None else ""
        return ", ".join(filter(None, (stage, run)))


class View(Protocol):
    """Shows a stage. The calls are begin, advance (many times), end, in this order; `ok` is false for an error."""

    def begin(self, title: str) -> None: ...
    def advance(self, progress: Progress, left: Left) -> None: ...
    def end(self, summary: str, *, ok: bool) -> None: ...


class Lines:
    """Plain lines through the task run's logger, which names the stage: a log file, a pipe, the Prefect UI."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def begin(self, title: str) -> None:
        get_run_logger().info("started")

    def advance(self, progress: Progress, left: Left) -> None:
        if time.monotonic() - self._last < _LINE_EVERY_S:
            return
        self._last = time.monotonic()
        get_run_logger().info(describe(progress, left))

    def end(self, summary: str, *, ok: bool) -> None:
        get_run_logger().log(logging.INFO if ok else logging.ERROR, summary)


class Terminal:
    """A live bar for the running stage, and a line for each finished stage."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("[dim]{task.fields[note]}"),
        )
        self._bars = Bars(*columns, console=console, transient=True)
        self._title = ""

    def begin(self, title: str) -> None:
        self._title = title
        self._bars.start()
        for task in self._bars.task_ids:
            self._bars.remove_task(task)
        self._bars.add_task(title, total=None, unit="", left="starting", note="")

    def advance(self, progress: Progress, left: Left) -> None:
        self._bars.update(
            self._bars.task_ids[0],
            completed=progress.count,
            total=progress.total,
            unit=progress.unit,
            left=str(left),
            note=progress.note,
        )

    def end(self, summary: str, *, ok: bool) -> None:
        self._bars.stop()
        mark = "[green]✓[/]" if ok else "[red]✗[/]"
        self._console.print(f"  {mark} {self._title:<24} {escape(summary)}", highlight=False, soft_wrap=True)


_view: ContextVar[View | None] = ContextVar("view", default=None)


@contextmanager
def shown_in(view: View) -> Iterator[None]:
    """Show the stages that run inside the block in this view; outside of it they are lines in the log."""
    token = _view.set(view)
    try:
        yield
    finally:
        _view.reset(token)


def current() -> View:
    """The view of this run."""
    return _view.get() or Lines()


def describe(progress: Progress, left: Left) -> str:
    """Progress in words."""
    parts = (f"{progress.count}/{progress.total} {progress.unit}", str(left), progress.note)
    return ", ".join(filter(None, parts))


def duration(seconds: float) -> str:
    """Seconds for people: 42 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
