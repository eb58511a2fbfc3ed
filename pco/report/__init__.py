"""The report of a run: one HTML page to read, and the same numbers as Markdown."""

from pathlib import Path

from data import files
from data.errors import BadInput
from pco.config.run import RunConfig
from pco.report import gather, markdown
from pco.runs.folder import report_path

__all__ = ["images", "round_markdown", "run_markdown", "write"]


def write(config: RunConfig) -> Path:
    """Write `<run>/report.html` from what is on disk, finished or not, and return its path.

    Raises BadInput when there is nothing to report, CorruptArtifact when a table is not what its manifest says.
    """
    from pco.report import page  # draws plots: heavy to import

    path = report_path(config)
    files.write_text(path, page.render(gather.run_report(config)))
    return path


def round_markdown(config: RunConfig, round: int) -> str:
    """One round's numbers beside the start's and the previous round's, as Markdown; 0 is the starting policy.

    Raises BadInput when the run has no such round or nothing of it is finished.
    """
    if not 0 <= round <= config.rounds:
        raise BadInput(f"round {round}: run `{config.run}` has rounds 1 to {config.rounds}, and 0 for the start.")
    report = gather.run_report(config)
    if all(stage.manifest is None for stage in report.stages if stage.round == round):
        raise BadInput(f"{config.folder}: nothing to report on round {round}: none of its stages is finished.")
    return markdown.one_round(report, round)


def run_markdown(config: RunConfig) -> str:
    """The whole run's numbers as Markdown.

    Raises BadInput when there is nothing to report.
    """
    return markdown.run(gather.run_report(config))


def images(config: RunConfig) -> list[tuple[str, str]]:
    """The run's plots, each with its title, as `data:` addresses that a page can show as images.

    Raises BadInput when there is nothing to report.
    """
    from pco.report import plots  # heavy to import

    report = gather.run_report(config)
    drawn = [*plots.rewards(report), *plots.guards(report), *plots.training(report)]
    return [(plot.title, plots.address(plot)) for plot in drawn]
