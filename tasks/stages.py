"""The Prefect task that runs one stage: retries, progress, log, and failures that name their cause."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast
from uuid import UUID

from prefect import get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from data import store
from data.errors import AwaitsAnswer, StageFailed
from data.store import Manifest
from pco.execution.executor import Executor, LocalExecutor
from pco.progress import Progress
from pco.runs import remaining
from pco.runs.status import counted
from pco.stage import Stage
from tasks import views

_ARTIFACT_EVERY_S = 5.0


async def _may_be_transient(_task: object, _run: TaskRun, state: State) -> bool:
    """Whether to retry: after a killed or crashed process, but not for bad input or a damaged run."""
    return isinstance(await state.aresult(raise_on_failure=False), StageFailed)


@task(
    task_run_name="{stage.title}",
    cache_policy=NO_CACHE,  # the manifest on disk decides whether a stage is done
    persist_result=False,
    retries=2,
    retry_delay_seconds=[5, 30],
    retry_condition_fn=_may_be_transient,
)
def run_stage(stage: Stage[Any], executor: Executor = LocalExecutor()) -> Manifest | AwaitsAnswer:  # noqa: B008  frozen
    """Let an executor make sure that a stage is finished; a finished stage returns its manifest at once.

    A decision that waits for a person is no failure: the task returns the exception that says so.
    """
    view = views.current()
    watch = _Watch(stage, view)
    view.begin(stage.title)
    try:
        reused = store.read_manifest(stage.folder) is not None
        manifest = executor.run(stage, on_progress=watch.advance, on_log=get_run_logger().debug)
    except AwaitsAnswer as waiting:
        view.end(str(waiting), ok=True)
        return waiting
    except BaseException as error:  # also a cancelled or interrupted stage
        view.end(str(error).partition("\n")[0] or type(error).__name__, ok=False)
        raise
    view.end(summary(manifest, reused=reused), ok=True)
    return manifest


@contextmanager
def shown_if_possible(what: str) -> Iterator[None]:
    """Only warn if the Prefect server does not answer: the run goes on without being shown."""
    try:
        yield
    except Exception as error:
        get_run_logger().warning("Could not show %s on the Prefect server: %s", what, error)


class _Watch:
    """Passes a stage's progress to the view and, less often, to the Prefect UI."""

    def __init__(self, stage: Stage[Any], view: views.View) -> None:
        self._stage, self._view = stage, view
        self._after_s = remaining.seconds_after(stage)
        self._first: tuple[float, float] | None = None
        self._artifact: UUID | None = None
        self._last_update = 0.0

    def advance(self, progress: Progress) -> None:
        left = self._left(progress)
        self._view.advance(progress, left)
        now = time.monotonic()
        if now - self._last_update < _ARTIFACT_EVERY_S and progress.done < progress.total:
            return
        self._last_update = now
        with shown_if_possible("the progress"):
            self._show(100 * progress.done / progress.total, views.describe(progress, left))

    def _show(self, percent: float, description: str) -> None:
        description = f"{self._stage.title}: {description}"
        if self._artifact is None:
            artifact = create_progress_artifact(percent, description=description)
            self._artifact = cast(UUID, artifact)  # a coroutine only where an event loop runs
        else:
            update_progress_artifact(self._artifact, percent, description)

    def _left(self, progress: Progress) -> views.Left:
        eta_s = self._eta(progress)
        return views.Left(eta_s, None if eta_s is None or self._after_s is None else eta_s + self._after_s)

    def _eta(self, progress: Progress) -> float | None:
        """Seconds left, at the rate since the first report (engine start and resumed shards do not count)."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now, progress.done)
            return None
        began, at_first = self._first
        done = progress.done - at_first
        return (now - began) / done * (progress.total - progress.done) if done > 0 else None


def summary(manifest: Manifest, *, reused: bool) -> str:
    """A finished stage in one line."""
    parts = [counted(manifest)]
    parts += [f"{count:,} dropped ({reason})" for reason, count in manifest.dropped.items() if count]
    parts.append("done before" if reused else views.duration(manifest.seconds))
    if "tokens_per_s" in manifest.metrics and not reused:
        parts.append(f"{manifest.metrics['tokens_per_s']:,.0f} tok/s")
    if "judge_position_bias" in manifest.metrics:
        parts.append(f"the judge's position bias {manifest.metrics['judge_position_bias']:.2f} (0.5 is fair)")
    return " · ".join(parts)
