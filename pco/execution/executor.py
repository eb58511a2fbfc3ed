"""Where stages run. A flow is handed an executor and knows no other way to run a stage."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from data.store import Manifest
from pco.execution import launcher
from pco.progress import Progress
from pco.stage import Stage


class Executor(Protocol):
    """Runs one stage at a time."""

    def run(
        self,
        stage: Stage[Any],
        *,
        on_progress: Callable[[Progress], None] = ...,
        on_log: Callable[[str], None] = ...,
    ) -> Manifest:
        """Make sure that a stage is finished, and return its manifest. A finished stage returns at once.

        Raises the stage's own error; StageFailed if its process died or ran out of time. Committed shards remain.
        """


@dataclass(frozen=True)
class LocalExecutor:
    """Each stage in a process of its own on this machine."""

    def run(
        self,
        stage: Stage[Any],
        *,
        on_progress: Callable[[Progress], None] = lambda _: None,
        on_log: Callable[[str], None] = lambda _: None,
    ) -> Manifest:
        """As `Executor.run`."""
        return launcher.run(stage, on_progress=on_progress, on_log=on_log)
