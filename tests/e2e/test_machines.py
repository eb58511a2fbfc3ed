"""A whole run on a machine as it may be, ended by Ctrl-C again and again."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import Case, stage_processes

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(2400)]

MOMENTS = [
    "round-00/logs/evaluate.log",
    "round-01/candidates/candidates-00000.parquet",
    "round-01/logs/score.log",
    "round-01/logs/train.log",
    "round-01/policy/config.json",
]
DEAD = "http://127.0.0.1:9"
HARD = {
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "http_proxy": DEAD,
    "https_proxy": DEAD,
    "all_proxy": DEAD,
    "no_proxy": "",
    "NO_PROXY": "",
}


def _started(case: Case, runs_dir: Path) -> "subprocess.Popen[bytes]":
    """The leader of a process group, as a shell starts it, and without a standard input."""
    run = case.command("run", str(case.file), "--set", f"runs_dir={runs_dir}")
    with case.output.open("ab") as output:
        return subprocess.Popen(
            ["sh", "-c", 'exec "$@" <&-', "sh", *run],
            env=case.environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _servers(home: str) -> list[int]:
    """The ids of the private servers with this home."""
    servers = []
    for process in psutil.process_iter(["cmdline"]):
        try:
            if "prefect.server.api.server:create_app" in (process.info["cmdline"] or []):
                servers += [process.pid] * (process.environ().get("PREFECT_HOME") == home)
        except psutil.Error:
            continue
    return servers


def test_a_run_that_is_interrupted_at_each_stage_ends_cleanly_and_goes_on(make_case: Callable[..., Case]) -> None:
    made = make_case(rounds=1)
    case = replace(made, environment={**made.environment, **HARD})
    runs_dir = made.file.parent / "große Läufe #2"
    folder = runs_dir / "test"
    for moment in MOMENTS:
        process = _started(case, runs_dir)
        while not (folder / moment).exists():
            assert process.poll() is None, case.output.read_text()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(120) == 130, case.output.read_text()
        assert stage_processes(folder) == []
        assert _servers(case.environment["PREFECT_HOME"]) == []
    assert _started(case, runs_dir).wait(1200) == 0, case.output.read_text()
    assert (folder / "report.html").exists()
    told = case.output.read_text()
    assert told.count("Interrupted. What is finished is kept; the same command resumes.") == len(MOMENTS)
    assert "Traceback" not in told


def test_a_run_without_asserts_is_a_run(make_case: Callable[..., Case]) -> None:
    case = make_case(rounds=1).under(PYTHONOPTIMIZE="1")
    status, output = case.run()
    assert status == 0, output
    assert "Report: " in case.tell("resume", str(case.folder))
