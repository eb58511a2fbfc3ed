"""`pco series`: the runs of a series, and what came of them."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from flows.console import RunsDir, clear_errors, console, print_table, say


def series(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Name of a series; all of them if left out.")
    ] = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Show the runs of a series: when each began, from which policy, on which prompts, and what it brought.

    Writes a page with the curve over the runs beside them, `series-NAME.html`. Runs that did not finish and were passed
    over are named. A config makes a run one of a series by its section `series`.
    """
    with clear_errors("Nothing was changed."):
        from pco.report import series as report

        if name is None:
            console.print(_table(runs_dir))
            return
        shown = report.runs(runs_dir.resolve(), name)
        print_table(report.table(shown))
        say(report.headline(shown))
        say(f"Page: {report.write(runs_dir.resolve(), name)}")


def _table(runs_dir: Path) -> Table:
    from pco.runs import series as of_runs

    table = Table("series", "runs", "finished", "rows used", title=f"Series in {runs_dir}", title_justify="left")
    for name in of_runs.names(runs_dir.resolve()):
        members = of_runs.members(runs_dir.resolve(), name)
        finished = [member for member in members if member.is_over]
        rows = finished[-1].begun.end_row if finished else 0
        table.add_row(name, str(len(members)), str(len(finished)), f"{rows:,}")
    return table
