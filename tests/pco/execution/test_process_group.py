"""No stage process outlives its run: not by a kill, a crash, an end of time or silence."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from data.errors import StageFailed
from pco.execution import launcher, process_group
from pco.stage import Stage
from tests import builders
from tests.pco.execution.conftest import FINISH, Clock, alive, ends, lines_of
from tests.points import PATIENCE_S, until

pytestmark = pytest.mark.process

# A child that ignores polite requests, as hanging workers do.
STUBBORN_CHILD = """
code = "import signal; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
child.stdout.readline()
print("child", child.pid, flush=True)
"""


# No process is left.


@pytest.mark.parametrize("end", [FINISH, "sys.exit(1)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_children_that_a_stage_leaves_behind_are_ended_however_it_ends(
    stage: Stage, stage_does: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(process_group, "_GRACE_S", 0.5)
    stage_does(STUBBORN_CHILD + end)
    ends(int(lines_of(stage)[0].removeprefix("child ")))


def test_a_cancelled_stage_is_ended_with_its_children(
    stage: Stage, stage_does: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_group, "_GRACE_S", 0.5)
    stage_does(STUBBORN_CHILD + "print('parent', os.getpid(), flush=True)\nsignal.pause()")
    lines: list[str] = []

    def cancel_when_both_are_known(line: str) -> None:
        lines.append(line)
        if len(lines) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launcher.run(stage, on_log=cancel_when_both_are_known)
    for line in lines:
        ends(int(line.split()[1]))


@pytest.fixture
def waiting_stage(stage: Stage) -> Stage:
    """A stage that waits for its input for ever: a pipe stands where a manifest should."""
    manifest = stage.inputs["candidates"].folder / "manifest.json"
    manifest.unlink()
    os.mkfifo(manifest)
    return stage


def wait_until_it_waits(stage: Stage) -> None:
    """Return when the stage's process has opened the pipe."""
    pipe = stage.inputs["candidates"].folder / "manifest.json"

    def opened() -> bool:
        try:
            os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)  # stays open, and the reader waits for what we never write
        except OSError:
            return False
        return True

    until(opened, "a stage that reads its input")


RUN = (
    "import sys; from pco.execution import launcher; from pco.stage import Stage; "
    "launcher.run(Stage.from_json(sys.argv[1]))"
)


@pytest.fixture
def parent(waiting_stage: Stage) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs the waiting stage, as a flow does."""
    process = subprocess.Popen([sys.executable, "-c", RUN, waiting_stage.to_json()], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def stage_process_of(parent: subprocess.Popen[bytes]) -> psutil.Process:
    return until(
        lambda: [one for one in psutil.Process(parent.pid).children() if "pco.execution.worker_main" in one.cmdline()],
        "a stage's process",
    )[0]


def test_a_stage_process_dies_with_its_parent_even_if_that_is_killed(
    waiting_stage: Stage, parent: subprocess.Popen[bytes]
) -> None:
    wait_until_it_waits(waiting_stage)
    child = stage_process_of(parent)
    assert alive(child.pid)
    parent.kill()
    ends(child.pid)


def test_a_stage_process_that_is_killed_while_it_works_leaves_an_error_that_says_so(
    waiting_stage: Stage,
) -> None:
    process = subprocess.Popen([sys.executable, "-c", RUN, waiting_stage.to_json()], stderr=subprocess.PIPE, text=True)
    wait_until_it_waits(waiting_stage)
    stage_process_of(process).kill()
    assert "killed by SIGKILL, as the kernel does when memory runs out" in process.communicate()[1]


def test_a_stage_process_whose_parent_was_gone_before_it_looked_does_not_start(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "stage.json").write_text(stage.to_json())
    dead = subprocess.Popen(["true"])
    dead.wait()
    command = [sys.executable, "-m", "pco.execution.worker_main", str(tmp_path / "stage.json")]
    done = subprocess.run(command, env={**os.environ, "PCO_PARENT": str(dead.pid)}, check=False)
    assert done.returncode != 0
    assert not stage.folder.exists()


# What an earlier attempt left behind.


def test_what_an_earlier_attempt_left_behind_is_ended_before_the_next_begins_and_nothing_else(
    stage: Stage, stage_does: Callable[[str], None]
) -> None:
    file = stage.folder.parent / "logs" / "score.json"
    sleep = [sys.executable, "-c", "import signal; signal.pause()"]
    ours, others = (
        subprocess.Popen(sleep, env={**os.environ, "PCO_STAGE_FILE": str(path)}, start_new_session=True)
        for path in (file, file.with_name("pair.json"))
    )
    try:
        stage_does(FINISH)
        lines: list[str] = []
        launcher.run(stage, on_log=lines.append)
        assert lines[0] == "ended 1 process(es) that an earlier attempt had left behind"
        ends(ours.pid)
        assert others.poll() is None
    finally:
        for process in (ours, others):
            process.kill()
            process.wait()


# Stages that hang.


def test_a_stage_that_says_nothing_for_too_long_is_ended_and_its_stacks_are_told(
    waiting_stage: Stage, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_group, "_STACKS_S", PATIENCE_S)
    config = builders.changed(waiting_stage.config, stall_timeout_s=5000)
    hanging = builders.stage("score", config, dict(waiting_stage.inputs))

    def an_hour_passes_in_silence() -> None:
        wait_until_it_waits(waiting_stage)
        clock.passes(5001)

    watch = threading.Thread(target=an_hour_passes_in_silence, daemon=True)
    watch.start()
    with pytest.raises(StageFailed) as caught:
        launcher.run(hanging)
    watch.join()
    message = str(caught.value)
    assert message.startswith("round 1/2 · score: ") and "5000 s (`stall_timeout_s`)" in message
    assert 'store.py", line' in message and "in read_manifest" in message


def test_a_stage_that_does_not_even_answer_is_ended(
    stage: Stage, stage_does: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for patience in ("_GRACE_S", "_STACKS_S"):
        monkeypatch.setattr(process_group, patience, 0.5)
    stage_does("os.kill(os.getpid(), signal.SIGSTOP)")
    hanging = builders.stage("score", builders.changed(stage.config, stall_timeout_s=1), dict(stage.inputs))
    with pytest.raises(StageFailed, match="no answer"):
        launcher.run(hanging)


def test_a_stage_that_says_something_now_and_then_is_left_alone(
    stage: Stage, stage_does: Callable[[str], None], clock: Clock
) -> None:
    stage_does("for i in range(9): print(i, flush=True)\n" + FINISH)
    busy = builders.stage("score", builders.changed(stage.config, stall_timeout_s=5000), dict(stage.inputs))
    manifest = launcher.run(busy, on_log=lambda _: clock.passes(4000))
    assert manifest.fingerprint == stage.fingerprint
