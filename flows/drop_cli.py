"""`pco drop`: a run made again without some of its data."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from data.errors import BadInput, RunConflict
from data.named_rows import read_named
from flows.console import RunsDir, clear_errors, console, errors, say
from pco.config.run import RunConfig
from pco.runs import drop as dropping
from pco.runs.drop import Holding, Resolved
from pco.runs.folder import find
from pco.runs.status import RunState

app = typer.Typer(rich_markup_mode="markdown")


@app.command()
def drop(
    name: Annotated[
        str, typer.Argument(metavar="RUN", help="Name of a run under the runs folder, or the path of its folder.")
    ],
    rows: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Prompt ids or prompts: JSONL, JSON, CSV or Parquet with `prompt_id`, `prompt` or `text`; or .txt "
            "with one a line.",
        ),
    ],
    new: Annotated[str | None, typer.Argument(metavar="[NEW]", help="Name of the run that is made without.")] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say which tables hold the rows and what would be made anew; make nothing."),
    ] = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Make a fork of a run without some of its data: a request to delete them, a source that was bad.

    Every prompt or text that FILE names goes, with all pairs and feedback on it. The fork shares all that was made
    before the first stage that held any of it, and `pco resume NEW` makes the rest anew. RUN stays as it is, and the
    command ends with what to delete to be rid of the data.

    Examples:
    - `pco drop quickstart --rows requests.jsonl --dry-run`

    - `pco drop quickstart without --rows requests.jsonl`

    """
    with clear_errors("Nothing was made."):
        if new is None and not dry_run:
            raise BadInput("NEW: name the run that is made without the rows, or look first with --dry-run.")
        origin = find(name, runs_dir)
        resolved = dropping.resolve(origin, read_named(rows))
        with errors.status("Reading tables"):
            found = dropping.holdings(origin, resolved.ids)
        if new is None or dry_run:
            _tell_found(origin, resolved, found)
            dropping.check_leaves_enough(origin, resolved.ids)
            _tell_redone(origin, found)
            return
        exclude = sorted({*origin.prompts.exclude, *resolved.ids})
        forked = find(name, runs_dir, [f"run={json.dumps(new)}", f"prompts.exclude={json.dumps(exclude)}"])
        if forked.folder.exists():
            raise RunConflict(f"{forked.folder}: exists. Take another name.")
        result = dropping.fork(origin, forked, resolved.ids, found)
        _tell_found(origin, resolved, found)
        say(f"{forked.folder}: excludes {len(resolved.ids)} prompts, shares {len(result.shared)} stages with {name}.")
        say(RunState(forked).to_do)
        _tell_deletion(origin, resolved, found, forked)


def _tell_found(config: RunConfig, resolved: Resolved, found: list[Holding]) -> None:
    say(f"{config.run}: holds {len(resolved.ids)} of the prompts that were named.")
    if resolved.missing:
        say(f"{len(resolved.missing)} rows name nothing in it:\n{dropping.listed(resolved.missing)}")
    table = Table("round", "stage", "table", "rows", "file")
    for holding in found:
        number, stage = holding.point
        table.add_row(str(number), stage, holding.table, f"{holding.rows:,}", escape(holding.path.name))
    console.print(table)


def _tell_redone(config: RunConfig, found: list[Holding]) -> None:
    first = dropping.first_touched(config, found)
    later = f", and everything from `{first[1]}` of round {first[0]} on" if first else ""
    say(f"A fork without them makes the frozen data anew{later}. Nothing was made.")


def _tell_deletion(config: RunConfig, resolved: Resolved, found: list[Holding], forked: RunConfig) -> None:
    say(
        f"{config.run} is as it was and still holds the data. When {forked.run} is finished, delete {config.folder}, "
        "or of it at least:"
    )
    for path in dropping.to_delete(config, found, resolved.ids):
        say(f"  {path}")
    elsewhere, unreadable = dropping.others(config, resolved.ids)
    if elsewhere:
        say("Other runs and evaluations hold them, too:")
        for path in dict.fromkeys(elsewhere):
            say(f"  {path}")
    for line in unreadable:
        say(f"Could not be looked through: {line}")
    say(f"They came from {', '.join(dropping.given_by(config, found, resolved.ids))}: delete them there yourself.")
