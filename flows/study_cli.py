"""`pco study`: variants of one config, with seeds, beside each other."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flows import private_server, running
from flows.console import KEPT, Overrides, RunsDir, clear_errors, console, print_table, say
from pco.config.file import OF_RUN
from pco.config.study import Study, load
from pco.runs import study as studies
from pco.runs import study_results

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Compare variants of a run over seeds.")

StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="Name of a study under `studies` in the runs folder.")]


@app.callback()
def group() -> None:
    """Compare variants of a run over seeds."""


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="YAML file of the study, e.g. configs/study-quick.yaml.")],
    overrides: Overrides = None,
    name: Annotated[str | None, typer.Option(help="Name of the study, in place of `study` in the file.")] = None,
    max_concurrent: Annotated[
        int | None, typer.Option(min=1, help="So many runs at a time, in place of `max_concurrent` in the file.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check every variant, and say what would be made; start nothing.")
    ] = False,
) -> None:
    """Make all runs of a study, or those that are missing, and its report.

    Its runs are named STUDY-VARIANT-sSEED and are ordinary ones. What they have in common is made once: the prompts,
    the evaluation of the starting policy, all stages up to the first whose settings differ. A run that fails does not
    stop the others; the command then ends with status 2, and tries it again when it is given again. `--set` changes the
    base config, before the variants change it.

    Examples:
    - `pco study run configs/study-quick.yaml`

    - `pco study run configs/study-quick.yaml --name longer --set rounds=4 --max-concurrent 2`

    """
    with clear_errors(KEPT):
        study = load(config, overrides or [], name=name, at_a_time=max_concurrent)
        studies.check(study)
        studies.check_policies_are_kept(study)
        if dry_run:
            _dry_run(study)
            return
        try:
            # No server and no engine starts to find that nothing is left to do.
            if not _is_over(study):
                _run(study)
        finally:
            if study.folder.exists():
                console.print(_runs_table(study))
        _conclude(study)


def _dry_run(study: Study) -> None:
    from pco import doctor

    private_server.check()
    for variant, config in study.variants.items():
        inputs, warnings = doctor.check(config)
        say(f"{variant}: checked: {inputs.summary()}.")
        for warning in warnings:
            say(f"{variant}: warning: {warning.name}: {warning.message}.")
    for variant, seed in study.runs:
        config, origin = study.config(variant, seed), studies.origin_of(study, variant, seed)
        shared = f", sharing {len(studies.shareable(origin, config))} stages with {origin.run}" if origin else ""
        say(f"Would make {config.run}: {config.rounds} round(s){shared}.")


def _is_over(study: Study) -> bool:
    """Whether all runs are over, and the tables and the report are of them as they are now."""
    if not all(running.is_over(study.config(*each)) for each in study.runs):
        return False
    is_reported = all((study.folder / name).exists() for name in (OF_RUN, "report.html"))
    return (
        is_reported and studies.read(study.name, study.runs_dir).runs == study.runs and study_results.is_written(study)
    )


def _run(study: Study) -> None:
    in_terminal = console.is_terminal
    private_server.begin(in_terminal)
    from flows.studies import run_study
    from tasks import views

    say(f"Study {study.name}: {len(study.runs)} runs into {study.runs_dir}")
    if in_terminal and study.max_concurrent == 1:
        with views.shown_in(views.Terminal(console)):
            run_study(study)
    else:
        run_study(study)


def _conclude(study: Study) -> None:
    from pco.report import study as study_report

    report = study_report.StudyReport(study)
    print_table(study_report.kept(report))
    for line in study_report.sentences(report):
        say(line)
    say(f"Report: {study.folder / 'report.html'}")


def _runs_table(study: Study) -> Table:
    columns = ("variant", "seed", "run", "state", "rounds", "keeps", "made", "shared")
    table = Table(*columns, title=str(study.folder), title_justify="left")
    for line in studies.lines(study):
        table.add_row(
            line.variant,
            str(line.seed),
            line.run,
            escape(f"{line.state}: {line.note}" if line.note else line.state),
            f"{line.decided} of {line.rounds}",
            f"round {line.kept}" if line.kept else "start",
            str(line.made),
            str(line.shared),
        )
    return table


@app.command()
def status(name: StudyName, runs_dir: RunsDir = Path("runs")) -> None:
    """Show where every run of a study stands, and which stages were made and shared.

    Reads folders alone, so it works while the study goes on and after it died. `pco status RUN` shows one run's stages.
    """
    with clear_errors(KEPT):
        console.print(_runs_table(studies.read(name, runs_dir)))


@app.command()
def report(
    name: StudyName,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the table of results as CSV.")] = None,
    latex: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a table of the variants for LaTeX (booktabs).")
    ] = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Write a study's tables and its report anew from what its runs have finished, and print the report's path.

    Example: `pco study report quick --csv quick.csv --latex quick.tex`
    """
    with clear_errors(KEPT):
        from pco.report import study as study_report

        study = studies.read(name, runs_dir)
        path = study_report.write(study)
        study_results.write(study)
        if csv is not None:
            study_report.write_csv(study, csv)
        if latex is not None:
            study_report.write_latex(study, latex)
        for written in (csv, latex):
            if written is not None:
                say(f"Table: {written}")
        say(str(path))


@app.command()
def best(
    name: StudyName,
    measure: Annotated[
        str | None, typer.Option(help="Rank by this measure; by default the one that the gate requires a gain of.")
    ] = None,
    level: Annotated[float, typer.Option(min=0.5, max=0.999, help="Confidence level of the intervals.")] = 0.95,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Name the variant whose kept policies are best, or say that the data do not decide.

    A variant is best if its difference from every other one is beyond what new prompts and new seeds may do by chance
    (docs/studies.md).

    Example: `pco study best quick --measure win_vs_start`
    """
    with clear_errors(KEPT):
        from pco.report import study as study_report

        found = study_report.StudyReport(studies.read(name, runs_dir), level=level).best(measure)
        for line in study_report.best_sentences(found):
            say(line)
