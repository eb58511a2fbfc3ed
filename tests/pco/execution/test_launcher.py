"""Stage processes: each ends in a manifest or in an error that says what happened, and none outlives its run.

The fakes are real processes: scripts in the place of the interpreter that the launcher starts.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data import errors, store
from data.errors import CorruptArtifact, PCOError, RunConflict, StageFailed
from pco.execution import launcher
from pco.progress import Progress
from pco.stage import Stage
from tests import builders
from tests.pco.execution.conftest import FINISH, Clock, ends, lines_of

pytestmark = pytest.mark.process


@pytest.fixture
def no_process_may_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/interpreter")


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
    with pytest.raises(StageFailed, match="no manifest"):
        launcher.run(stage)


def test_a_process_that_runs_out_of_time_is_ended(
    stage: Stage, stage_does: Callable[[str], None], clock: Clock
) -> None:
    stage_does("print(os.getpid(), flush=True)\nsignal.pause()")
    lines: list[str] = []

    def a_day_passes(line: str) -> None:
        lines.append(line)
        clock.passes(86_400)

    slow = builders.stage("score", builders.changed(stage.config, stage_timeout_s=80_000), dict(stage.inputs))
    with pytest.raises(StageFailed, match="stage_timeout_s"):
        launcher.run(slow, on_log=a_day_passes)
    ends(int(lines[0]))


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
    with pytest.raises(PCOError, match=r"scores/manifest\.json: "):
        launcher.run(stage)
    (stage.config.folder / "round-01").unlink()
    stage.folder.parent.mkdir()
    (stage.folder.parent / "logs").touch()
    with pytest.raises(PCOError, match=r"logs/score\.json: "):
        launcher.run(stage)
