"""Stages in processes: real ones, and fakes that are real processes too (scripts in the interpreter's place)."""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from data.errors import PCOError
from pco.execution import launcher
from pco.stage import Stage
from tests import builders
from tests.points import until

FINISH = """
from data import schemas, store
from pco.stage import Stage
stage = Stage.from_json(Path(sys.argv[-1]).read_text())
store.write_part(stage.folder, "scores", 0, schemas.build("scores", []), stage.fingerprint)
stage.finish(unit="candidates", rows_in=0, rows_out=0, dropped={}, started=0.0)
"""


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """A stage that scores two candidates."""
    rows = [builders.candidate_row("p", sample, [1, 2, 3, 1, 2, 3]) for sample in (0, 1)]
    candidates = builders.finished(tmp_path / "candidates", {"candidates": rows}, "generate")
    return builders.stage("score", builders.config(tmp_path), {"candidates": candidates})


@dataclass
class Clock:
    """A clock that a test sets forward."""

    ahead_s: float = 0.0

    def passes(self, seconds: float) -> None:
        self.ahead_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The launcher's: so a stage is late when the test says so, however long it took to start."""
    own, real = Clock(), time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + own.ahead_s)
    return own


def lines_of(stage: Stage) -> list[str]:
    """The log lines of a run, which may fail."""
    lines: list[str] = []
    with contextlib.suppress(PCOError):
        launcher.run(stage, on_log=lines.append)
    return lines


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def ends(pid: int) -> None:
    """Return once a process that was killed has ended: the kernel takes its time on a busy machine."""
    until(lambda: not alive(pid), f"the end of {pid}")
