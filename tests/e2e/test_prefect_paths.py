"""A deployment on a work pool: failed, cancelled, killed, retried as the UI and the command line do it, recovered.

In every path the run ends Completed, and nothing that was finished before is written again.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from pco.runs.folder import holder, read_config
from pco.runs.status import RunState
from tests.e2e.conftest import Case, asked, stage_processes

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
POOL = "local"
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}
HALF_GENERATED = "round-01/candidates/candidates-00001.parquet"
TOO_YOUNG_S = 10  # a flow run that has said Running for so short is given the benefit of the doubt
Row = dict[str, Any]


@dataclass(frozen=True)
class Site:
    """A server, a work pool, and a deployment on it; workers come and go."""

    url: str
    home: Path
    deployment: str

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PREFECT_HOME": str(self.home),
            "PREFECT_API_URL": self.url,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "DO_NOT_TRACK": "1",
            "COLUMNS": "300",
        }

    def post(self, path: str, **body: Any) -> Any:
        return asked("POST", f"{self.url}/{path}", json=body)

    def start_run(self, case: Case) -> "Run":
        config = yaml.safe_load(case.file.read_text())
        made = self.post(f"deployments/{self.deployment}/create_flow_run", parameters={"config": config})
        return Run(self, made["id"], Path(config["runs_dir"]) / config["run"])

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", *words]
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def told(self, *words: str) -> str:
        """What a command prints."""
        return self.start(*words).communicate(timeout=60)[0]


@dataclass(frozen=True)
class Run:
    """A flow run and its folder."""

    site: Site
    id: str
    folder: Path

    @property
    def row(self) -> Row:
        row: Row = asked("GET", f"{self.site.url}/flow_runs/{self.id}")
        return row

    @property
    def tasks(self) -> list[Row]:
        rows: list[Row] = self.site.post("task_runs/filter", flow_runs={"id": {"any_": [self.id]}})
        return rows

    def set_state(self, kind: str, name: str) -> None:
        """As the pages of Prefect's UI do it."""
        self.site.post(f"flow_runs/{self.id}/set_state", state={"type": kind, "name": name}, force=True)

    def retry(self) -> None:
        """Like a person who first sees it ended: the worker overwrites a retry that it did not expect (Crashed)."""
        time.sleep(3)
        self.set_state("SCHEDULED", "AwaitingRetry")

    def resume(self, **answer: Any) -> Row:
        """As the form of a suspended run in the UI does it, and like a person no sooner than its process has ended."""
        _until(lambda: not psutil.pid_exists(self.lock["pid"]), 60, self)
        time.sleep(3)
        answered: Row = self.site.post(f"flow_runs/{self.id}/resume", run_input=answer)
        return answered

    def becomes(self, state: str, within_s: float) -> str:
        """Wait for a state by name; returns its message."""
        return str(
            _until(lambda: self.row["state"] if self.row["state_name"] == state else None, within_s, self)["message"]
        )

    def comes_to(self, file: str, within_s: float = 90) -> None:
        _until((self.folder / file).exists, within_s, self)

    def works_within(self, seconds: float) -> None:
        _until(lambda: self.folder.exists() and holder(self.folder) == self.id, seconds, self)

    @property
    def lock(self) -> Row:
        lock: Row = json.loads((self.folder / ".lock").read_text())
        return lock

    def kill(self) -> None:
        """Kill the process that holds the run's folder, as the system does when memory runs out."""
        os.kill(self.lock["pid"], signal.SIGKILL)

    def kill_with(self, worker: subprocess.Popen[bytes]) -> None:
        """As when the machine goes down: nobody is left to tell the server."""
        worker.kill()
        self.kill()

    def hang(self) -> None:
        """Stop the stage where it is; a polite signal does not reach it any more."""
        for pid in _until(lambda: stage_processes(self.folder), 60, self):
            os.kill(pid, signal.SIGSTOP)

    def is_quiet_within(self, seconds: float) -> None:
        _until(lambda: not stage_processes(self.folder), seconds, self)

    def finished(self) -> dict[Path, int]:
        """All that is committed, and when it was written."""
        files = [*self.folder.rglob("*.parquet"), *self.folder.rglob("manifest.json")]
        return {path: path.stat().st_mtime_ns for path in files}


def _until(come: Callable[[], Any], within_s: float, run: Run) -> Any:
    deadline = time.monotonic() + within_s
    while not (found := come()):
        if time.monotonic() > deadline:
            log = (run.site.home / "worker.log").read_text()[-3000:]
            pytest.fail(f"not within {within_s} s; {run.row['state_name']}: {run.row['state']['message']}\n{log}")
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def site(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    from prefect import flow
    from prefect.settings import PREFECT_API_URL, temporary_settings

    home = tmp_path_factory.mktemp("site")
    asked("POST", f"{server}/work_pools/", json={"name": POOL, "type": "process"})
    with temporary_settings({PREFECT_API_URL: server}):
        loaded = flow.from_source(source=str(ROOT), entrypoint="flows/rounds.py:run_rounds")
        deployment = loaded.deploy(name="rounds", work_pool_name=POOL, print_next_steps=False)
    yield Site(server, home, str(deployment))
    for process in psutil.process_iter():
        try:
            if process.environ().get("PREFECT_HOME") == str(home):
                process.kill()
        except psutil.Error:
            continue


@pytest.fixture
def start_worker(site: Site) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    started = []

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "prefect", "worker", "start", "--type", "process", "--pool", POOL]
        with (site.home / "worker.log").open("ab") as log:
            worker = subprocess.Popen(command, env=site.environment, cwd=site.home, stdout=log, stderr=log)
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.kill()
        worker.wait()


def _is_whole(run: Run, finished: dict[Path, int]) -> None:
    """All stages are done, what was finished before is as it was, and no task says that it goes on."""
    lines = RunState(read_config(run.folder)).stages
    assert {line.state for line in lines} == {"done"}, lines
    after = run.finished()
    assert {path: after.get(path) for path in finished} == finished
    assert (run.folder / "report.html").exists()
    _until(lambda: {task["state_type"] for task in run.tasks} <= ENDED, 10, run)


def test_a_run_that_failed_was_cancelled_and_killed_is_retried_and_redoes_nothing(
    make_case: Callable[..., Case], site: Site, start_worker: Callable[[], subprocess.Popen[bytes]]
) -> None:
    start_worker()
    case = make_case(run="retried", rounds=1, generate__shard_size=1)
    prompts = case.file.parent / "heldout.jsonl"
    away = prompts.rename(prompts.with_suffix(".away"))
    run = site.start_run(case)
    assert "heldout.jsonl: could not be read" in run.becomes("Failed", 60)

    away.rename(prompts)
    run.retry()
    run.comes_to(HALF_GENERATED)
    run.hang()
    second = site.start_run(case)
    assert f"Another flow run works on {run.folder}" in second.becomes("AwaitingConcurrencySlot", 60)
    second.set_state("CANCELLED", "Cancelled")

    finished = run.finished()
    run.set_state("CANCELLING", "Cancelling")
    run.is_quiet_within(15)
    run.becomes("Cancelled", 45)
    assert not (run.folder / "round-01/candidates/manifest.json").exists(), "it was not in the middle any more"

    assert "has been scheduled for retry" in site.told("prefect", "flow-run", "retry", run.id)
    run.comes_to("round-01/logs/train.log")
    finished |= run.finished()
    run.kill()
    run.becomes("Crashed", 15)
    run.is_quiet_within(5)

    run.retry()
    run.becomes("Completed", 120)
    _is_whole(run, finished)


def test_a_refused_round_asks_and_a_person_answers_there_or_on_the_command_line(
    make_case: Callable[..., Case], site: Site, start_worker: Callable[[], subprocess.Popen[bytes]]
) -> None:
    start_worker()
    impossible = {"reward": {"min_change": 5.0, "confidence": None}}
    settings = {"gate__require": impossible, "gate__otherwise": "ask", "gate__answer_within_s": 15, "rounds": 1}
    case = make_case(run="asked", **settings)
    run = site.start_run(case)
    run.becomes("Suspended", 180)
    assert RunState(case.config).stages[-1].state == "waiting"
    assert holder(run.folder) is None, "nobody works on it meanwhile"
    assert run.resume(approve="perhaps")["status"] == "REJECT"
    run.becomes("Failed", 60)  # without an answer

    fork = ("--from", "decide", "--round", "1")
    assert "shares 7 stages" in case.tell("fork", str(run.folder), "refused", *fork)
    other = run.folder.with_name("refused")
    waiting = site.told("flows.cli", "resume", str(other))
    assert "waiting: round 1 refused: reward" in waiting and "`pco answer refused approve`" in waiting
    assert "Kept." in case.tell("answer", str(other), "refuse", "--comment", "it rambles")
    assert "it was refused for good by " in case.tell("resume", str(other))
    assert "waits for no answer" in site.told("flows.cli", "answer", str(other), "approve")

    finished = run.finished()
    run.retry()
    run.becomes("Suspended", 60)
    assert run.resume(approve=True, comment="it reads well")["status"] == "ACCEPT"
    run.becomes("Completed", 60)
    _is_whole(run, finished)
    assert RunState(case.config).reasons[0].endswith("; asked, it was approved (it reads well)")
    assert (run.folder / "best").resolve() == (run.folder / "round-01/policy").resolve()


def test_a_run_whose_worker_died_with_it_is_recovered_and_one_whose_worker_died_alone_goes_on(
    make_case: Callable[..., Case], site: Site, start_worker: Callable[[], subprocess.Popen[bytes]]
) -> None:
    worker = start_worker()
    run = site.start_run(make_case(run="orphaned", rounds=1))
    run.comes_to("round-00/logs/evaluate.log")
    assert f"({run.id}): alive" in site.told("flows.cli", "recover", "--resume")
    finished = run.finished()
    run.kill_with(worker)
    run.is_quiet_within(5)
    time.sleep(TOO_YOUNG_S)
    assert run.row["state_name"] == "Running"
    assert "RUNNING" in {task["state_type"] for task in run.tasks}

    other = site.start("flows.cli", "resume", str(run.folder))
    assert "the lock of the run's folder says so" in run.becomes("Crashed", 60)
    assert {task["state_type"] for task in run.tasks} <= ENDED
    assert run.lock["flow_run"] != run.id
    other.kill()
    told = _until(lambda: _told_dead(site), 60, run)
    assert f"({run.lock['flow_run']}): dead: marked Crashed, has no deployment to resume it: `pco resume" in told

    run.retry()
    worker = start_worker()
    run.works_within(60)
    run.kill_with(worker)
    run.set_state("CANCELLING", "Cancelling")
    time.sleep(TOO_YOUNG_S)
    assert f"({run.id}): dead: marked Cancelled" in site.told("flows.cli", "recover", "--resume")
    assert run.row["state_name"] == "Cancelled"

    run.retry()
    worker = start_worker()
    run.works_within(60)
    run.kill_with(worker)
    time.sleep(TOO_YOUNG_S)
    both = [site.start("flows.cli", "recover", "--resume", "--max-attempts", "9") for _ in range(2)]
    told = "".join(one.communicate(timeout=60)[0] for one in both)
    assert told.count("dead: marked Crashed, resumes as attempt 4") == 1, told
    assert (run.row["state_name"], run.row["run_count"]) == ("AwaitingRetry", 3)
    assert {task["state_type"] for task in run.tasks} <= ENDED

    worker = start_worker()
    run.comes_to("round-01/logs/generate.log")
    worker.kill()
    finished |= run.finished()
    run.becomes("Completed", 120)
    _is_whole(run, finished)
    assert run.row["run_count"] == 4
    assert "No flow run says Running" in site.told("flows.cli", "recover")


def _told_dead(site: Site) -> str | None:
    told = site.told("flows.cli", "recover", "--resume")
    return told if "dead" in told else None
