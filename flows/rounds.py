"""The multi-round run as a Prefect flow: every stage of `pco.rounds` as a task, a report after each round."""

import re
import time
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from uuid import UUID

from prefect import flow, get_client, get_run_logger
from prefect.artifacts import create_image_artifact, create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.runtime import flow_run
from prefect.states import Completed

from data import store
from data.errors import Skipped
from flows.ask import asking
from flows.holding import holding, queue
from flows.recover import FLOW
from pco import rounds
from pco.config.run import RunConfig
from pco.evaluation.decision import Decision
from pco.runs import series
from pco.runs.after_round import keep_best
from pco.stage import Artifact, Stage
from pco.tracking import following
from tasks.stages import run_stage, shown_if_possible

SKIPPED = "Skipped"  # the name of the state of a flow run whose run of a series did not begin
REFUSED = "pco.round.refused"  # the event; flows/automations.py answers it


@flow(name=FLOW, flow_run_name="{config.run}", persist_result=False, validate_parameters=True)
def run_rounds(config: RunConfig) -> str | State[str]:
    """Run the rounds of a config until they are through or the gate ends the run; returns the report's path.

    What is finished on disk is not done again, so the same call resumes a run that died.
    """
    return work(config)


def work(config: RunConfig, *, until: int | None = None) -> str | State[str]:
    """The body of every flow that makes rounds: all of them, or those up to a number.

    Returns the report's path, or the state `Skipped` of a run of a series that does not begin.
    """
    with ExitStack() as stack:
        try:
            with series.entered(config, due=flow_run.scheduled_start_time, queue=queue) as begun:
                config = begun
                stack.enter_context(holding(config))
        except Skipped as reason:
            get_run_logger().warning(reason)
            return Completed(name=SKIPPED, message=str(reason), data="")
        told = stack.enter_context(following(config, get_run_logger().warning))
        _name_round(config, 1)
        with suppress(_Enough):
            rounds.walk(config, told(asking(run_stage)), decided=partial(_decided, config, until, time.time()))
        return str(_publish_run(config))


class _Enough(Exception):
    """The last round that is wanted is decided."""


def _name_round(config: RunConfig, number: int) -> None:
    with shown_if_possible("the round"), get_client(sync_client=True) as client:
        client.update_flow_run(UUID(flow_run.id), name=f"{config.run} · round {number} of {config.rounds}")


def _decided(config: RunConfig, until: int | None, began: float, number: int, best: Artifact) -> None:
    for removed in keep_best(config, number, best):
        get_run_logger().info("Removed %s to save room (keep_last)", removed)
    _publish_round(config, number)
    _tell_if_refused(config, number, since=began)
    if number == until:
        raise _Enough
    if number < config.rounds:
        _name_round(config, number + 1)


def _tell_if_refused(config: RunConfig, number: int, *, since: float) -> None:
    """Once: a flow run that resumes comes by the earlier rounds again."""
    manifest = store.read_manifest(Stage("decide", number, config).folder)
    if manifest is None or manifest.finished < since or Decision.of(manifest).promoted:
        return
    reason = Decision.of(manifest).reason
    get_run_logger().warning(reason)
    with shown_if_possible("that the round was refused"):
        emit_event(
            REFUSED,
            resource={"prefect.resource.id": f"pco.run.{config.run}"},
            payload={"run": config.run, "round": number, "reason": reason},
        )


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
        for title, image in report.images(config):
            create_image_artifact(image, key=_key(config, title), description=title)
    if config.series is not None and config.begun is not None:
        with shown_if_possible("the series"):
            _publish_series(config, config.series.name)
    return path


def _publish_series(config: RunConfig, name: str) -> None:
    from pco.report import series as series_report

    page = series_report.write(Path(config.runs_dir), name)
    text = series_report.as_markdown(Path(config.runs_dir), name)
    create_markdown_artifact(text, key=_key(config, "series"), description=f"Series {name}: {page}")


def _key(config: RunConfig, name: str) -> str:
    """Prefect allows lower-case letters, digits and dashes in an artifact's key."""
    return re.sub(r"[^a-z0-9]+", "-", f"{config.run}-{name}".lower()).strip("-")
