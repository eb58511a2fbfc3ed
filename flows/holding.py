"""How a flow run holds the folders that it writes to: waits its turn, says where it works, outlives its worker."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID

from prefect import get_client, get_run_logger
from prefect.client.schemas.objects import State
from prefect.exceptions import Abort
from prefect.logging.handlers import PrefectConsoleHandler
from prefect.runtime import deployment, flow_run
from prefect.states import Scheduled

from flows.recover import FOLDER, WAITING, take_over
from pco.config.reward_training import RewardTraining
from pco.config.run import RunConfig
from pco.config.study import Study
from pco.runs import study
from pco.runs.folder import is_held, opened
from tasks.stages import shown_if_possible

Held = RunConfig | RewardTraining | Study

_ASK_AGAIN_S = 120.0  # each time costs the start of a process
_LOOK_AGAIN_S = 5.0


@contextmanager
def holding(config: Held, *others: RunConfig) -> Iterator[None]:
    """Hold the folders of these configs for this flow run, all the while: the first stands for all to `pco recover`.

    Raises RunConflict when another process holds one, or one was made with another config. The run of a deployment
    does not fail where a folder is held: it is started again later.
    """
    _outlive_the_worker()
    configs = (config, *others)
    for each in configs:
        _queue_if_held(each)
    with ExitStack() as held:
        for each in configs:
            held.enter_context(_opened(each, flow_run.id or ""))
        _introduce(config)
        take_over(config, flow_run.id or "", get_run_logger())
        yield


def _opened(config: Held, flow_run_id: str) -> AbstractContextManager[None]:
    return study.opened(config, flow_run_id) if isinstance(config, Study) else opened(config, flow_run_id)


def _outlive_the_worker() -> None:
    """A worker reads this process's output from a pipe; once it is dead, Rich answers the next line with SystemExit."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            handler.console.on_broken_pipe = partial(_silence, handler.console.file.fileno)  # type: ignore[method-assign]


def _silence(descriptor: Callable[[], int]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor())


def _queue_if_held(config: Held) -> None:
    """Give the worker back while another flow run works there; the server starts this one again later.

    A process that waited for the lock itself would say Running, and be taken for a dead one. A flow within another, as
    a run of a study, cannot be started alone: it fails.
    """
    if not deployment.id or not is_held(config.folder) or flow_run.parent_flow_run_id:
        return
    queue(f"Another flow run works on {config.folder}. This one starts again when it is through.")


def queue(message: str) -> None:
    """Give the worker back; the server starts this flow run again later. One of no deployment waits here."""
    if not deployment.id:
        get_run_logger().info(message)
        time.sleep(_LOOK_AGAIN_S)
        return
    later = datetime.now(UTC) + timedelta(seconds=_ASK_AGAIN_S)
    waiting: State[None] = Scheduled(scheduled_time=later, name=WAITING, message=message)
    get_run_logger().info(message)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(flow_run.id), waiting, force=True)
    raise Abort(message)


def _introduce(config: Held) -> None:
    """Tell the server where this flow run works, and let it be found by the run's name."""
    with shown_if_possible("where the run lies"), get_client(sync_client=True) as client:
        client.update_flow_run_labels(UUID(flow_run.id), {FOLDER: str(config.folder.resolve())})
        client.update_flow_run(UUID(flow_run.id), tags={*flow_run.tags, config.run})
