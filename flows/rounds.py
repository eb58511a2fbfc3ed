"""The multi-round run as a Prefect flow: every stage of `pco.rounds` as a task, a report after each round."""

import logging
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.logging.handlers import PrefectConsoleHandler
from prefect.runtime import flow_run

from flows.recover import FLOW, take_over
from pco import rounds
from pco.config import RunConfig
from pco.rundir import opened
from tasks.stages import run_stage, shown_if_possible


@flow(name=FLOW, flow_run_name="{config.run}", persist_result=False, validate_parameters=True)
def run_rounds(config: RunConfig) -> str:
    """Run the rounds of a config until they are through or the gate refuses one; returns the report's path.

    What is finished on disk is not done again, so the same call resumes a run that died.
    """
    outlive_the_worker()
    with opened(config, flow_run.id or ""):
        take_over(config, flow_run.id or "", get_run_logger())
        rounds.walk(config, run_stage, decided=partial(_publish_round, config))
        return str(_publish_run(config))


def outlive_the_worker() -> None:
    """A worker reads this process's output from a pipe; once it is dead, Rich answers the next line with SystemExit."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            handler.console.on_broken_pipe = partial(_silence, handler.console.file.fileno)  # type: ignore[method-assign]


def _silence(descriptor: Callable[[], int]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor())


def _publish_round(config: RunConfig, number: int) -> None:
    from pco import report

    text = report.round_markdown(config, number)
    with shown_if_possible(f"the report of round {number}"):
        create_markdown_artifact(text, key=_key(config, f"round-{number}"), description=f"Round {number}")


def _publish_run(config: RunConfig) -> Path:
    from pco import report

    path: Path = report.write(config)
    with shown_if_possible("the run's report"):
        create_markdown_artifact(report.run_markdown(config), key=_key(config, "report"), description=f"Report: {path}")
    return path


def _key(config: RunConfig, name: str) -> str:
    """Prefect allows lower-case letters, digits and dashes in an artifact's key."""
    return re.sub(r"[^a-z0-9]+", "-", f"{config.run}-{name}".lower()).strip("-")
