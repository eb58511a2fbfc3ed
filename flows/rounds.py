"""The multi-round run as a Prefect flow: every stage of `pco.rounds` as a task, a report after each round."""

import logging
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from uuid import UUID

from prefect import flow, get_client, get_run_logger
from prefect.artifacts import create_image_artifact, create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.exceptions import Abort
from prefect.logging.handlers import PrefectConsoleHandler
from prefect.runtime import deployment, flow_run
from prefect.states import Scheduled

from data import store
from flows.ask import asking
from flows.recover import FLOW, FOLDER, take_over
from pco import retention, rounds
from pco.config import RunConfig
from pco.reward_training.config import RewardTraining
from pco.rundir import is_held, opened, point_to_best
from pco.stage import Artifact, Stage
from tasks.stages import run_stage, shown_if_possible

REFUSED = "pco.round.refused"  # the event; flows/automations.py answers it
_ASK_AGAIN_S = 120.0  # each time costs the start of a process


@flow(name=FLOW, flow_run_name="{config.run}", persist_result=False, validate_parameters=True)
def run_rounds(config: RunConfig) -> str:
    """Run the rounds of a config until they are through or the gate ends the run; returns the report's path.

    What is finished on disk is not done again, so the same call resumes a run that died.
    """
    return work(config)


def work(config: RunConfig, *, until: int | None = None) -> str:
    """The body of every flow that makes rounds: all of them, or those up to a number."""
    outlive_the_worker()
    _queue_if_held(config)
    with opened(config, flow_run.id or ""):
        introduce(config)
        _name_round(config, 1)
        take_over(config, flow_run.id or "", get_run_logger())
        with suppress(_Enough):
            rounds.walk(config, asking(run_stage), decided=partial(_decided, config, until, time.time()))
        return str(_publish_run(config))


class _Enough(Exception):
    """The last round that is wanted is decided."""


def _queue_if_held(config: RunConfig) -> None:
    """Give the worker back while another flow run works on this run; the server starts this one again later.

    A process that waited for the lock itself would say Running, and be taken for a dead one.
    """
    if not deployment.id or not is_held(config.folder):
        return
    told = f"Another flow run works on {config.folder}. This one starts again when it is through."
    later = datetime.now(UTC) + timedelta(seconds=_ASK_AGAIN_S)
    waiting: State[None] = Scheduled(scheduled_time=later, name="AwaitingConcurrencySlot", message=told)
    get_run_logger().info(told)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(flow_run.id), waiting, force=True)
    raise Abort(told)


def introduce(config: RunConfig | RewardTraining) -> None:
    """Tell the server where this flow run works, and let it be found by the run's name."""
    with shown_if_possible("where the run lies"), get_client(sync_client=True) as client:
        client.update_flow_run_labels(UUID(flow_run.id), {FOLDER: str(config.folder.resolve())})
        client.update_flow_run(UUID(flow_run.id), tags={*flow_run.tags, config.run})


def _name_round(config: RunConfig, number: int) -> None:
    with shown_if_possible("the round"), get_client(sync_client=True) as client:
        client.update_flow_run(UUID(flow_run.id), name=f"{config.run} · round {number} of {config.rounds}")


def _decided(config: RunConfig, until: int | None, began: float, number: int, best: Artifact) -> None:
    if not _is_decided(config, number + 1):  # a resumed walk comes by the earlier rounds again
        point_to_best(config, best.folder)
        for removed in retention.prune(config):
            get_run_logger().info("Removed %s to save room (keep_last)", removed)
    _publish_round(config, number)
    _tell_if_refused(config, number, since=began)
    if number == until:
        raise _Enough
    if number < config.rounds:
        _name_round(config, number + 1)


def _is_decided(config: RunConfig, number: int) -> bool:
    return store.read_manifest(Stage("decide", number, config, {}).folder) is not None


def outlive_the_worker() -> None:
    """A worker reads this process's output from a pipe; once it is dead, Rich answers the next line with SystemExit."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            handler.console.on_broken_pipe = partial(_silence, handler.console.file.fileno)  # type: ignore[method-assign]


def _silence(descriptor: Callable[[], int]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor())


def _tell_if_refused(config: RunConfig, number: int, *, since: float) -> None:
    """Once: a flow run that resumes comes by the earlier rounds again."""
    decision = store.read_manifest(Stage("decide", number, config, {}).folder)
    if decision is None or decision.outputs["promoted"] == "yes" or decision.finished < since:
        return
    get_run_logger().warning(decision.outputs["reason"])
    told = {"run": config.run, "round": number, "reason": decision.outputs["reason"]}
    with shown_if_possible("that the round was refused"):
        emit_event(REFUSED, resource={"prefect.resource.id": f"pco.run.{config.run}"}, payload=told)


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
    return path


def _key(config: RunConfig, name: str) -> str:
    """Prefect allows lower-case letters, digits and dashes in an artifact's key."""
    return re.sub(r"[^a-z0-9]+", "-", f"{config.run}-{name}".lower()).strip("-")
