"""Points in the work of other processes: a test holds a process there, or has it killed there.

So what a test sees "in the middle" rests on no clock: the process waits until the test lets go, however fast or slow
the machine is. `points_site/sitecustomize.py` is the other side.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

PATIENCE_S = 1200  # for what comes unless there is a bug, on a machine however busy
SITE = Path(__file__).parent / "points_site"


@dataclass(frozen=True)
class Hold:
    """A path before which every process waits, until the test lets go."""

    plan: Path
    before: str

    def arrived(self) -> int | None:
        """The id of a process that waits here; each is told of once."""
        file = self.plan.with_suffix(".held")
        if not file.exists():
            return None
        pid = int(file.read_text())
        file.unlink()
        return pid

    def wait(self, check: Callable[[], object] = lambda: None) -> int:
        """The id of the process that waits here, once one does.

        `check` is called again and again meanwhile: it may raise when no process will come any more.
        """

        def come() -> int | None:
            check()
            return self.arrived()

        return int(until(come, f"a process at {self.before}"))

    def release(self) -> None:
        self.plan.unlink()


@dataclass(frozen=True)
class Points:
    """The plans of a test, for processes that are started with `environment`."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(SITE), *filter(None, [os.environ.get("PYTHONPATH")])])
        return {"PCO_POINTS": str(self.folder), "PYTHONPATH": path}

    def hold(self, before: str | Path) -> Hold:
        """Have processes wait before they make the file or folder whose path ends like this."""
        return Hold(self._plan(before, "hold"), str(before))

    def kill(self, before: str | Path, victim: Literal["self", "group"]) -> None:
        """Have the next process that would make this path kill itself or its group, with SIGKILL."""
        self._plan(before, victim)

    def _plan(self, before: str | Path, kind: str) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        plan = self.folder / f"{Path(before).name}-{uuid4().hex}.{kind}"
        draft = plan.with_suffix(".draft")
        draft.write_text(f"/{str(before).lstrip('/')}")
        draft.rename(plan)
        return plan


def until(come: Callable[[], Any], what: str, *, every_s: float = 0.02) -> Any:
    """Wait for something that comes unless there is a bug; returns it."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := come()):
        assert time.monotonic() < deadline, f"waited {PATIENCE_S} s in vain for {what}"
        time.sleep(every_s)
    return found
