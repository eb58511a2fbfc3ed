"""Stage processes: each ends in a manifest or in an error that says what happened, and none outlives its run.

The fakes are real processes: scripts in the place of the interpreter that the launcher starts.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from data import errors, store
from data.errors import CorruptArtifact, PCOError, RunConflict, StageFailed
from pco.execution import launcher, process_group
from pco.progress import Progress
from pco.stage import Stage
from tests import builders

PATIENCE_S = 60

FINISH = """
from data import schemas, store
from pco.stage import Stage
stage = Stage.from_json(Path(sys.argv[-1]).read_text())
store.write_part(stage.folder, "scores", 0, schemas.build("scores", []), stage.fingerprint)
stage.finish(unit="candidates", rows_in=0, rows_out=0, dropped={}, started=0.0)
"""

# A child that ignores polite requests, as hanging workers do.
STUBBORN_CHILD = """
code = "import signal; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
child.stdout.readline()
print("child", child.pid, flush=True)
"""


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """A stage that scores two candidates."""
    rows = [builders.candidate_row("p", sample, [1, 2, 3, 1, 2, 3]) for sample in (0, 1)]
    candidates = builders.finished(tmp_path / "candidates", {"candidates": rows}, "generate")
    return builders.stage("score", builders.config(tmp_path), {"candidates": candidates})


@pytest.fixture
def no_process_may_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/interpreter")


def lines_of(stage: Stage) -> list[str]:
    """The log lines of a run, which may fail."""
    lines: list[str] = []
    with contextlib.suppress(PCOError):
        launcher.run(stage, on_log=lines.append)
    return lines


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def until(true: Callable[[], Any]) -> Any:
    """Wait for something that comes soon unless there is a bug."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if found := true():
            return found
        time.sleep(0.02)
    raise AssertionError("waited in vain")


# Success.


def test_a_stage_runs_in_a_process_and_its_manifest_comes_back(stage: Stage) -> None:
    manifest = launcher.run(stage)
    assert manifest == store.read_manifest(stage.folder)
    assert manifest.fingerprint == stage.fingerprint
    rewards = store.read_table(stage.folder, "scores").column("reward").to_pylist()
    assert rewards == [-0.25, -0.25]


@pytest.mark.usefixtures("no_process_may_start")
def test_a_finished_stage_starts_no_process_and_leaves_no_log(stage: Stage) -> None:
    done = builders.finished(stage.folder, {"scores": []}, "score", stage.fingerprint)
    assert launcher.run(stage) == store.read_manifest(done.folder)
    assert not (stage.folder.parent / "logs").exists()


def test_events_and_log_lines_arrive_in_order_and_the_log_holds_them_all(
    stage: Stage, stage_does: Callable[[str], None]
) -> None:
    stage_does(
        "from pco import progress\n"
        "print('before')\n"
        "for done in (1, 2): progress.report(progress.Progress(done, 2, 'rows'))\n"
        "print('on standard error', file=sys.stderr)\n"
        "sys.stdout.buffer.write(b'half a line, not UTF-8: \\xff')\n"
        "sys.stdout.flush()\n" + FINISH
    )
    events: list[Any] = []
    launcher.run(stage, on_progress=events.append, on_log=events.append)
    told = [Progress(1, 2, "rows"), Progress(2, 2, "rows")]
    assert events == ["before", *told, "on standard error", "half a line, not UTF-8: \ufffd"]
    log = (stage.folder.parent / "logs" / "score.log").read_text(errors="replace")
    assert log.startswith(launcher.ATTEMPT)
    assert log.splitlines()[1] == "before"
    assert log.endswith("half a line, not UTF-8: \ufffd")


def test_a_stage_process_is_no_rank_of_an_outer_launcher(
    stage: Stage, stage_does: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    stage_does("print([name for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE') if name in os.environ])")
    assert lines_of(stage) == ["[]"]


def test_the_users_own_environment_wins(
    stage: Stage, stage_does: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    stage_does("print(os.environ['VLLM_LOGGING_LEVEL'], os.environ['TOKENIZERS_PARALLELISM'])")
    assert lines_of(stage) == ["DEBUG false"]


@pytest.mark.parametrize(
    ("model", "second", "offline"), [("a folder", None, "1"), ("hub/id", None, "None"), ("a folder", "hub/id", "None")]
)
def test_a_local_model_needs_no_hub(
    tmp_path: Path,
    stage_does: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    second: str | None,
    offline: str,
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    stage_does("print(os.environ.get('HF_HUB_OFFLINE'))")
    judge = second and {"kind": "model", "model": second}
    config = builders.config(tmp_path, tmp_path if model == "a folder" else model, evaluate__second_reward=judge)
    assert lines_of(builders.stage("score", config)) == [offline]


# Failure.


def test_a_stages_own_error_is_raised_again_with_its_message(stage: Stage) -> None:
    part = stage.inputs["candidates"].folder / "candidates-00000.parquet"
    part.unlink()
    with pytest.raises(CorruptArtifact, match=rf"^{part}: missing"):
        launcher.run(stage)
    assert store.read_manifest(stage.folder) is None


KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PCOError)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_of_the_tree_arrives_as_itself(
    stage: Stage, stage_does: Callable[[str], None], kind: type[PCOError]
) -> None:
    failure = {"failure": {"kind": kind.__name__, "message": "line 1\nline 2 · é"}}
    stage_does(f"from pco import progress\nprogress.send({failure!r})\nsys.exit(3)")
    with pytest.raises(PCOError) as caught:
        launcher.run(stage)
    assert type(caught.value) is kind
    assert str(caught.value) == "line 1\nline 2 · é"


@pytest.mark.parametrize(
    ("end", "cause"),
    [
        ("sys.exit(7)", "its process ended with status 7"),
        ("sys.exit(255)", "its process ended with status 255"),
        ("sys.exit(247)", "its process was killed by SIGKILL, as the kernel does when memory runs out"),
        ("raise ValueError('unforeseen')", "its process ended with status 1"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL, as the kernel does when memory runs out"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
    ],
)
def test_a_crash_says_how_the_process_ended_with_the_last_lines_and_the_logs_path(
    stage: Stage, stage_does: Callable[[str], None], end: str, cause: str
) -> None:
    stage_does(f"for i in range(99): print('line', i, flush=True)\n{end}")
    with pytest.raises(StageFailed) as caught:
        launcher.run(stage)
    message = str(caught.value)
    assert message.startswith("round 1/2 · score: ") and cause in message
    assert str(stage.folder.parent / "logs" / "score.log") in message
    assert "line 98" in message and "line 10\n" not in message


def test_a_process_that_ends_well_without_a_manifest_has_failed(
    stage: Stage, stage_does: Callable[[str], None]
) -> None:
    stage_does("pass")
    with pytest.raises(StageFailed, match="ended without an error but left no manifest"):
        launcher.run(stage)


def test_a_process_that_runs_out_of_time_is_ended(stage: Stage, stage_does: Callable[[str], None]) -> None:
    stage_does("print(os.getpid(), flush=True)\nsignal.pause()")
    lines: list[str] = []
    slow = builders.stage("score", builders.changed(stage.config, stage_timeout_s=1), dict(stage.inputs))
    with pytest.raises(StageFailed, match="ran out of time"):
        launcher.run(slow, on_log=lines.append)
    assert not alive(int(lines[0]))


def test_the_log_of_a_failed_attempt_is_kept_and_its_lines_are_not_told_again(
    stage: Stage, stage_does: Callable[[str], None]
) -> None:
    stage_does("print('first', end='', flush=True); sys.exit(1)")
    assert lines_of(stage) == ["first"]
    stage_does("print('second', flush=True)\n" + FINISH)
    assert lines_of(stage) == ["second"]
    lines = (stage.folder.parent / "logs" / "score.log").read_text().splitlines()
    assert [line for line in lines if launcher.ATTEMPT not in line] == ["first", "second"]
    assert len(lines) == 4


def test_a_failed_stage_can_be_run_again(stage: Stage, stage_does: Callable[[str], None]) -> None:
    stage_does("sys.exit(1)")
    with pytest.raises(StageFailed):
        launcher.run(stage)
    stage_does(FINISH)
    assert launcher.run(stage).fingerprint == stage.fingerprint


@pytest.mark.usefixtures("no_process_may_start")
def test_finished_work_of_other_settings_is_a_conflict_before_anything_starts(stage: Stage) -> None:
    builders.finished(stage.folder, {"scores": []}, "score", "another")
    with pytest.raises(RunConflict):
        launcher.run(stage)


def test_a_run_that_cannot_be_written_or_read_names_the_file(tmp_path: Path) -> None:
    stage = builders.stage("score", builders.config(tmp_path))
    stage.config.folder.mkdir(parents=True)
    (stage.config.folder / "round-01").touch()
    with pytest.raises(PCOError, match=r"scores/manifest\.json: could not be read"):
        launcher.run(stage)
    (stage.config.folder / "round-01").unlink()
    stage.folder.parent.mkdir()
    (stage.folder.parent / "logs").touch()
    with pytest.raises(PCOError, match=r"logs/score\.json: could not be written"):
        launcher.run(stage)


# No process is left.


@pytest.mark.parametrize("end", [FINISH, "sys.exit(1)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_children_that_a_stage_leaves_behind_are_ended_however_it_ends(
    stage: Stage, stage_does: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(process_group, "_GRACE_S", 0.5)
    stage_does(STUBBORN_CHILD + end)
    child = int(lines_of(stage)[0].removeprefix("child "))
    assert not alive(child)


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
    assert [alive(int(line.split()[1])) for line in lines] == [False, False]


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

    until(opened)


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
        lambda: [one for one in psutil.Process(parent.pid).children() if "pco.execution.worker_main" in one.cmdline()]
    )[0]


def test_a_stage_process_dies_with_its_parent_even_if_that_is_killed(
    waiting_stage: Stage, parent: subprocess.Popen[bytes]
) -> None:
    wait_until_it_waits(waiting_stage)
    child = stage_process_of(parent)
    assert alive(child.pid)
    parent.kill()
    until(lambda: not alive(child.pid))


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
    sleep = [sys.executable, "-c", "import time; time.sleep(99)"]
    ours, others = (
        subprocess.Popen(sleep, env={**os.environ, "PCO_STAGE_FILE": str(path)}, start_new_session=True)
        for path in (file, file.with_name("pair.json"))
    )
    try:
        stage_does(FINISH)
        lines: list[str] = []
        launcher.run(stage, on_log=lines.append)
        assert lines[0] == "ended 1 process(es) that an earlier attempt had left behind"
        assert not alive(ours.pid)
        assert others.poll() is None
    finally:
        for process in (ours, others):
            process.kill()
            process.wait()


# Stages that hang.


def test_a_stage_that_says_nothing_for_too_long_is_ended_and_its_stacks_are_told(waiting_stage: Stage) -> None:
    config = builders.changed(waiting_stage.config, stall_timeout_s=5)
    hanging = builders.stage("score", config, dict(waiting_stage.inputs))
    with pytest.raises(StageFailed) as caught:
        launcher.run(hanging)
    message = str(caught.value)
    assert message.startswith("round 1/2 · score: said nothing for 5 s (`stall_timeout_s`)")
    assert 'store.py", line' in message and "in read_manifest" in message


def test_a_stage_that_does_not_even_answer_is_ended(stage: Stage, stage_does: Callable[[str], None]) -> None:
    stage_does("os.kill(os.getpid(), signal.SIGSTOP)")
    hanging = builders.stage("score", builders.changed(stage.config, stall_timeout_s=1), dict(stage.inputs))
    with pytest.raises(StageFailed, match="It gave no answer when asked for its stacks"):
        launcher.run(hanging)


def test_a_stage_that_says_something_now_and_then_is_left_alone(
    stage: Stage, stage_does: Callable[[str], None]
) -> None:
    stage_does("for i in range(35): print(i, flush=True); time.sleep(0.2)\n" + FINISH)
    busy = builders.stage("score", builders.changed(stage.config, stall_timeout_s=6), dict(stage.inputs))
    assert launcher.run(busy).fingerprint == stage.fingerprint
