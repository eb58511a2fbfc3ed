"""Flow runs that say Running although nobody works on them: told by the lock of the run's folder, marked, resumed."""

import logging
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from uuid import UUID

import httpx
from prefect import flow, get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import filters
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.settings import PREFECT_API_URL
from prefect.states import AwaitingRetry, Cancelled, Crashed

from data.errors import BadInput, PCOError
from pco.config.reward_training import RewardTraining
from pco.config.run import RunConfig
from pco.config.study import Study
from pco.runs.folder import holder, recovering

FLOW = "pco-rounds"
REWARD_FLOW = "pco-reward"
EVALUATE_FLOW = "pco-evaluate"
STUDY_FLOW = "pco-study"
OURS = [FLOW, REWARD_FLOW, EVALUATE_FLOW, STUDY_FLOW]  # flows that work in a folder
FOLDER = "pco.folder"  # the label of a flow run that says where it works
WAITING = "AwaitingConcurrencySlot"  # the name of the state of one that waits for its folder, or its series
_YOUNG_S = 10.0  # a flow run that says Running takes the lock of its folder much sooner
_AGAIN_S = 2.0
_BUSY = [StateType.RUNNING, StateType.CANCELLING]


def recover(*, resume: bool, max_attempts: int) -> Iterator[str]:
    """Mark every dead flow run of ours on the server, and its task runs; yields a line for each that has not ended.

    With `resume`, also schedule the retry of those that belong to a deployment and began fewer than `max_attempts`
    times. A run that was being cancelled becomes Cancelled and is never resumed.

    Raises BadInput when no Prefect server is named, or none answers.
    """
    url = PREFECT_API_URL.value()
    if not url:
        raise BadInput("PREFECT_API_URL: not set. Set it to the server whose runs to recover: http://HOST:4200/api")
    try:
        with get_client(sync_client=True) as client:
            for run in _unfinished(client):
                yield f"{run.name} ({run.id}): {_recovered(client, run, resume, max_attempts)}"
    except httpx.HTTPError as error:
        raise BadInput(f"{url}: no answer from this Prefect server ({error}). Is PREFECT_API_URL right?") from None


@flow(name="pco-recover", persist_result=False)
def recover_runs(max_attempts: int = 3, crashed: str = "") -> None:
    """Mark flow runs that died with their worker, and schedule their retry.

    Args:
        max_attempts: A flow run that began to work this often is marked, but not resumed. Waiting does not count.
        crashed: Id of a flow run to look at alone, which has crashed while its worker lived; the server's automation
            fills it in.

    """
    lines = resume_crashed(UUID(crashed), max_attempts) if crashed else recover(resume=True, max_attempts=max_attempts)
    for line in lines:
        get_run_logger().info(line)


def resume_crashed(run_id: UUID, max_attempts: int) -> Iterator[str]:
    """Schedule the retry of a flow run whose worker told that it crashed, and yield what came of it.

    More than one may tell of the same crash: the state, read while `recovering`, lets only the first resume it.
    """
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(run_id)
        yield f"{run.name} ({run.id}): {_crash_resumed(client, run, max_attempts)}"


def _crash_resumed(client: SyncPrefectClient, run: FlowRun, max_attempts: int) -> str:
    folder = folder_of(run)
    if folder is None:
        return "left alone: it never said where it works."
    try:
        with recovering(folder):
            run = client.read_flow_run(run.id)
            if run.state_type != StateType.CRASHED:
                return f"{run.state_name} by now"
            if holder(folder) is not None:
                return "left alone: in work"
            _mark_tasks(client, run)
            return resumed(client, run, folder, max_attempts)
    except PCOError as error:
        return f"left alone: {error}"


def take_over(
    config: RunConfig | RewardTraining | Study, own: str, log: "logging.LoggerAdapter[logging.Logger] | logging.Logger"
) -> None:
    """Mark what cannot be alive while the flow run `own` holds the folder: others that work there, its earlier tasks.

    To fail at it only leaves wrong states on the server, and is never worth failing the run.
    """
    try:
        with get_client(sync_client=True) as client:
            for run in _unfinished(client):
                if str(run.id) == own and run.run_count > 1:
                    _mark_tasks(client, run)
                elif folder_of(run) == config.folder.resolve() and is_dead(str(run.id), _age_s(run), own):
                    _mark(client, run)
                    log.info("Flow run %s worked on this run and died without a word: marked.", run.id)
    except Exception as error:
        log.warning("Could not mark dead flow runs on the Prefect server: %s", error)


def is_dead(flow_run: str, age_s: float, held_by: str | None) -> bool:
    """Whether a flow run that has said Running for so long is dead; `held_by` as `holder` tells of its folder."""
    return age_s > _YOUNG_S and (held_by is None or held_by not in ("", flow_run))


def folder_of(run: FlowRun) -> Path | None:
    """Where a flow run works, as it told the server once it held the folder; None if it never came to that."""
    folder = run.labels.get(FOLDER)
    return Path(str(folder)) if folder else None


def resumed(client: SyncPrefectClient, run: FlowRun, folder: Path, max_attempts: int) -> str:
    """Schedule the retry of a flow run that was marked, if a worker can take it up; says what came of it."""
    if run.deployment_id is None:
        return f"has no deployment to resume it: `pco resume {folder}`"
    begun = attempts(run, client.read_flow_run_states(run.id))
    if begun >= max_attempts:
        return f"not resumed after {begun} attempts (--max-attempts)"
    client.set_flow_run_state(run.id, AwaitingRetry(message="Resumed by `pco recover`"))
    return f"resumes as attempt {begun + 1}"


def attempts(run: FlowRun, states: Sequence[State[object]]) -> int:
    """How often a flow run began to work. The server also counts each time that it only found its folder held."""
    ordered = sorted(states, key=lambda state: state.timestamp)
    waits = [after.name == WAITING and before.is_running() for before, after in pairwise(ordered)]
    return run.run_count - sum(waits)


def _recovered(client: SyncPrefectClient, run: FlowRun, resume: bool, max_attempts: int) -> str:
    folder = folder_of(run)
    if folder is None:
        return "left alone: it never said where it works. Cancel it in the UI if it does not go on."
    try:
        if holder(folder) == str(run.id):
            return "alive"
        with recovering(folder):
            return _settled(client, run.id, folder, resume, max_attempts)
    except PCOError as error:
        return f"left alone: {error}"


def _settled(client: SyncPrefectClient, run_id: UUID, folder: Path, resume: bool, max_attempts: int) -> str:
    """Look twice: after it gave up the lock and before it told the server that it ended, a living run looks dead."""
    for pause_s in (0.0, _AGAIN_S):
        time.sleep(pause_s)
        run = client.read_flow_run(run_id)
        if run.state_type not in _BUSY:
            return f"{run.state_name} by now"
        if not is_dead(str(run.id), age_s := _age_s(run), holder(folder)):
            return f"left alone: {run.state_name} for {age_s:.0f} s" if age_s <= _YOUNG_S else "left alone: in work"
    if not _mark(client, run):
        return "ended just now"
    if run.state_type == StateType.CANCELLING:
        return "dead: marked Cancelled, as was asked of it"
    return f"dead: marked Crashed, {resumed(client, run, folder, max_attempts) if resume else 'may be retried'}"


def _mark(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Whether the server accepted it: not if the run has ended meanwhile."""
    message = "No process works on it any more: the lock of the run's folder says so."
    cancelling = run.state_type == StateType.CANCELLING
    state: State[None] = Cancelled(message=message) if cancelling else Crashed(message=message)
    accepted: bool = client.set_flow_run_state(run.id, state).status == SetStateStatus.ACCEPT
    if accepted:
        _mark_tasks(client, run)
    return accepted


def _mark_tasks(client: SyncPrefectClient, run: FlowRun) -> None:
    """A killed task run says Running for ever."""
    unfinished = filters.TaskRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING, StateType.SCHEDULED])
    for task in client.read_task_runs(
        flow_run_filter=filters.FlowRunFilter(id=filters.FlowRunFilterId(any_=[run.id])),
        task_run_filter=filters.TaskRunFilter(state=filters.TaskRunFilterState(type=unfinished, name=None)),
    ):
        client.set_task_run_state(task.id, Crashed(message="Its flow run died."), force=True)


def _unfinished(client: SyncPrefectClient) -> list[FlowRun]:
    state = filters.FlowRunFilterState(type=filters.FlowRunFilterStateType(any_=_BUSY))
    return client.read_flow_runs(
        flow_filter=filters.FlowFilter(name=filters.FlowFilterName(any_=OURS)),
        flow_run_filter=filters.FlowRunFilter(state=state),
    )


def _age_s(run: FlowRun) -> float:
    """How long it has been in its state: a retried one may have started days ago and be Running since a second."""
    return (datetime.now(UTC) - run.state.timestamp).total_seconds() if run.state else 0.0
