"""`pco doctor`: what can be known of a config before a run."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flows.console import clear_errors, console, errors, say
from pco.config.run import load

_STYLES = {"ok": "green", "warning": "yellow", "fault": "bold red", "skipped": "dim"}


def doctor(
    config: Annotated[Path, typer.Argument(help="YAML config, e.g. configs/quickstart.yaml.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value, e.g. `--set train.precision=fp32`."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only what takes seconds and loads no weights, as every run begins with.")
    ] = False,
) -> None:
    """Examine a config, and everything it names, before hours are spent on it. Status 2 if there is a fault.

    Prompts and leakage, chat templates, ends of text, tied weights, number formats, disk and memory. Without
    `--quick` also a canary: one training step that changes nothing, the engine on what it saved, and the
    log-probabilities of both. That takes a minute or two and room for a policy, and leaves nothing behind.

    Example: `pco doctor configs/quickstart.yaml --quick`
    """
    with clear_errors("Nothing was changed."):
        from pco import doctor

        table, statuses = Table("examination", "status", "message", title_justify="left"), []
        with errors.status("Examining"):
            for finding in doctor.examine(load(config, overrides), quick=quick):
                statuses.append(finding.status)
                table.add_row(finding.name, finding.status, escape(finding.message), style=_STYLES[finding.status])
        console.print(table)
        faults, warnings = statuses.count("fault"), statuses.count("warning")
        say(f"{faults} fault(s), {warnings} warning(s).")
    if faults:
        raise typer.Exit(2)
