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
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy

from pco.runs.folder import holder, read_config
from pco.runs.status import RunState
from pco.stage import flat
from tests.e2e.conftest import Case, asked, stage_processes, worker_is_done
from tests.points import PATIENCE_S, Hold, Points, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(6000)]

ROOT = Path(__file__).parents[2]
POOL = "local"
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}
ANSWER_S = 86_400
TO_SCHEDULE_S = 20  # the server looks for new schedules every few seconds
TOO_YOUNG_S = 10  # a flow run that has said Running for so short is given the benefit of the doubt
Row = dict[str, Any]


@dataclass(frozen=True)
class Site:
    """A server, a work pool, and a deployment on it; workers come and go."""

    url: str
    home: Path
    deployment: str

    @property
    def points(self) -> Points:
        return Points(self.home / "points")

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            **self.points.environment,
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
        return self.start(*words).communicate(timeout=PATIENCE_S)[0]


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
        """As the pages do it."""
        before = self.row["run_count"]
        self.set_state("SCHEDULED", "AwaitingRetry")
        self.begins_again(before)

    def begins_again(self, before: int) -> None:
        """Wait until it began more often than before; a worker is there."""
        self.until(lambda: self.row["run_count"] > before, "its next attempt")

    def rests(self, attempts: int) -> None:
        """Wait until the worker is done with all attempts so far, as a person who acts on it has done."""
        self.until(lambda: worker_is_done(self.site.url, self.id, attempts), f"the end of attempt {attempts}")

    def resume(self, **answer: Any) -> Row:
        """As the form of a suspended run in the UI does it."""
        answered: Row = self.site.post(f"flow_runs/{self.id}/resume", run_input=answer)
        return answered

    def waits_no_longer(self) -> None:
        """Have the time for an answer be over."""
        state = self.row["state"]
        over = {**state["state_details"], "pause_timeout": "2020-01-01T00:00:00Z"}
        state = {"type": state["type"], "name": state["name"], "state_details": over}
        self.site.post(f"flow_runs/{self.id}/set_state", state=state, force=True)

    def becomes(self, state: str) -> str:
        """Wait for a state by name; returns its message."""
        return str(self.until(lambda: self.row["state"] if self.row["state_name"] == state else None, state)["message"])

    def reaches(self, hold: Hold) -> int:
        """Wait until its stage's process waits there; returns that."""
        return int(self.until(hold.arrived, f"its stage at {hold.before}"))

    def works(self) -> None:
        self.until(lambda: self.folder.exists() and holder(self.folder) == self.id, "its hold of the folder")

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

    def is_quiet(self) -> None:
        self.until(lambda: not stage_processes(self.folder), "the end of its stage's process")

    def finished(self) -> dict[Path, int]:
        """All that is committed, and when it was written."""
        files = [*self.folder.rglob("*.parquet"), *self.folder.rglob("manifest.json")]
        return {path: path.stat().st_mtime_ns for path in files}

    def until(self, come: Callable[[], Any], what: str) -> Any:
        """Wait; what the worker says is told where that is in vain."""
        try:
            return until(come, what, every_s=0.1)
        except AssertionError as error:
            log = (self.site.home / "worker.log").read_text()[-3000:]
            pytest.fail(f"{error}; {self.row['state_name']}: {self.row['state']['message']}\n{log}")


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
    run.until(lambda: {task["state_type"] for task in run.tasks} <= ENDED, "the end of its tasks")


def test_a_run_that_failed_was_cancelled_and_killed_is_retried_and_redoes_nothing(
    make_case: Callable[..., Case], site: Site, start_worker: Callable[[], subprocess.Popen[bytes]]
) -> None:
    start_worker()
    case = make_case(run="retried", rounds=1, generate__shard_size=1)
    prompts = case.file.parent / "heldout.jsonl"
    away = prompts.rename(prompts.with_suffix(".away"))
    run = site.start_run(case)
    assert "heldout.jsonl: could not be read" in run.becomes("Failed")

    away.rename(prompts)
    run.rests(1)
    half_generated = site.points.hold(run.folder / "round-01/candidates/candidates-00002.parquet")
    run.retry()
    os.kill(run.reaches(half_generated), signal.SIGSTOP)  # a polite signal does not reach it any more
    second = site.start_run(case)
    assert f"Another flow run works on {run.folder}" in second.becomes("AwaitingConcurrencySlot")
    second.set_state("CANCELLED", "Cancelled")

    finished = run.finished()
    run.set_state("CANCELLING", "Cancelling")
    run.is_quiet()
    run.becomes("Cancelled")
    run.rests(2)
    half_generated.release()

    half_trained = site.points.hold(run.folder / "round-01/.policy.tmp")
    began = run.row["run_count"]
    assert "has been scheduled for retry" in site.told("prefect", "flow-run", "retry", run.id)
    run.begins_again(began)
    run.reaches(half_trained)
    finished |= run.finished()
    run.kill()
    run.becomes("Crashed")
    run.is_quiet()
    half_trained.release()

    run.rests(3)
    run.retry()
    run.becomes("Completed")
    _is_whole(run, finished)


def _scheduled(site: Site, case: Case, every_s: int, count: int) -> list[Run]:
    """A series on a schedule of its own that ends after so many flow runs; returns these."""
    from prefect import flow
    from prefect.settings import PREFECT_API_URL, temporary_settings

    raw = yaml.safe_load(case.file.read_text())
    runs_dir = Path(raw.pop("runs_dir"))
    series = {"name": "nightly", "prompts": 8, "on_overlap": "queue"}
    overrides = "\n".join(f"{key}={json.dumps(value)}" for key, value in flat(raw).items() if key != "run")
    parameters = {"run": "at-{time}", "series": series, "overrides": overrides, "runs_dir": str(runs_dir)}
    with temporary_settings({PREFECT_API_URL: site.url}):
        deployment = flow.from_source(source=str(ROOT), entrypoint="flows/form.py:start").deploy(
            name="nightly",
            work_pool_name=POOL,
            parameters=parameters,
            concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE),
            print_next_steps=False,
        )
    begin = datetime.now(UTC) + timedelta(seconds=TO_SCHEDULE_S)
    rule = f"DTSTART:{begin:%Y%m%dT%H%M%S}Z\nRRULE:FREQ=SECONDLY;INTERVAL={every_s};COUNT={count}"
    schedules = [{"schedule": {"rrule": rule, "timezone": "UTC"}, "active": True}]
    asked("POST", f"{site.url}/deployments/{deployment}/schedules", json=schedules)

    def come() -> list[Row] | None:
        rows: list[Row] = site.post("flow_runs/filter", deployments={"id": {"any_": [str(deployment)]}})
        return rows if len(rows) == count else None

    rows = sorted(until(come, "its flow runs", every_s=1), key=lambda row: row["expected_start_time"])
    due = [datetime.fromisoformat(row["expected_start_time"]) for row in rows]
    return [Run(site, row["id"], runs_dir / f"at-{at:%H%M%S}") for row, at in zip(rows, due, strict=True)]


def test_a_schedule_makes_a_run_each_time_from_the_best_policy_so_far_and_passes_over_one_that_was_killed(
    make_case: Callable[..., Case], site: Site, start_worker: Callable[[], subprocess.Popen[bytes]]
) -> None:
    case = make_case(rounds=1, train__epochs=1, evaluate__samples=1, generate__n=2, engine__max_model_len=None)
    runs = _scheduled(site, case, every_s=5, count=3)
    holds = {run: site.points.hold(run.folder / "round-00/prompts/manifest.json") for run in runs}
    start_worker()

    def begins() -> Run:
        """The next run, held while it prepares. A worker takes up what is late in any order."""
        run: Run = until(
            lambda: next((run for run in holds if holds[run].arrived()), None), "the next run", every_s=0.1
        )
        return run

    first = begins()
    holds.pop(first).release()
    first.becomes("Completed")
    killed = begins()
    killed.kill()
    killed.becomes("Crashed")
    killed.is_quiet()
    holds.pop(killed).release()
    last = begins()
    holds.pop(last).release()
    last.becomes("Completed")

    begun = [read_config(run.folder).begun for run in (first, killed, last)]
    windows = [(each.number, each.first_row, each.end_row, each.from_run) for each in begun if each]
    best = first.folder.name
    assert windows == [(1, 0, 8, None), (2, 8, 16, best), (3, 8, 16, best)]
    assert read_config(last.folder).policy.model == str((first.folder / "best").resolve())
    killed.rests(1)
    killed.retry()
    assert f"{killed.folder.name}: was not finished when {last.folder.name} began" in killed.becomes("Failed")
    told = case.tell("series", "nightly", "--runs-dir", str(first.folder.parent))
    assert "3 runs, 2 finished, 2 with a promoted policy. Reward on held-out prompts" in told
    assert f"Passed over, as they did not finish: {killed.folder.name}." in told
    assert (first.folder.parent / "series-nightly.html").exists()


def test_a_refused_round_asks_and_a_person_answers_there_or_on_the_command_line(
    make_case: Callable[..., Case], site: Site, start_worker: Callable[[], subprocess.Popen[bytes]]
) -> None:
    start_worker()
    impossible = {"reward": {"min_change": 5.0, "confidence": None}}
    settings = {"gate__require": impossible, "gate__otherwise": "ask", "gate__answer_within_s": ANSWER_S, "rounds": 1}
    case = make_case(run="asked", **settings)
    run = site.start_run(case)
    run.becomes("Suspended")
    assert RunState(case.config).stages[-1].state == "waiting"
    assert holder(run.folder) is None, "nobody works on it meanwhile"
    run.rests(1)
    assert run.resume(approve="perhaps")["status"] == "REJECT"
    details = run.row["state"]["state_details"]
    waits = datetime.fromisoformat(details["pause_timeout"]) - datetime.fromisoformat(run.row["state"]["timestamp"])
    assert ANSWER_S - PATIENCE_S < waits.total_seconds() < ANSWER_S + PATIENCE_S
    run.waits_no_longer()
    run.becomes("Failed")

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
    run.becomes("Suspended")
    run.rests(2)
    assert run.resume(approve=True, comment="it reads well")["status"] == "ACCEPT"
    run.becomes("Completed")
    _is_whole(run, finished)
    assert RunState(case.config).reasons[0].endswith("; asked, it was approved (it reads well)")
    assert (run.folder / "best").resolve() == (run.folder / "round-01/policy").resolve()


def test_a_run_whose_worker_died_with_it_is_recovered_and_one_whose_worker_died_alone_goes_on(
    make_case: Callable[..., Case], site: Site, start_worker: Callable[[], subprocess.Popen[bytes]]
) -> None:
    worker = start_worker()
    case = make_case(run="orphaned", rounds=1)
    half_evaluated = site.points.hold(case.folder / "round-00/evaluation/evaluations-00000.parquet")
    run = site.start_run(case)
    run.reaches(half_evaluated)
    assert f"({run.id}): alive" in site.told("flows.cli", "recover", "--resume")
    finished = run.finished()
    run.kill_with(worker)
    run.is_quiet()
    time.sleep(TOO_YOUNG_S)
    assert run.row["state_name"] == "Running"
    assert "RUNNING" in {task["state_type"] for task in run.tasks}

    other = site.start("flows.cli", "resume", str(run.folder))
    assert "the lock of the run's folder says so" in run.becomes("Crashed")
    assert {task["state_type"] for task in run.tasks} <= ENDED
    assert run.lock["flow_run"] != run.id
    other.kill()
    told = run.until(lambda: _told_dead(site), "a word on the other's death")
    assert f"({run.lock['flow_run']}): dead: marked Crashed, has no deployment to resume it: `pco resume" in told

    worker = start_worker()
    run.retry()
    run.works()
    run.kill_with(worker)
    run.set_state("CANCELLING", "Cancelling")
    time.sleep(TOO_YOUNG_S)
    assert f"({run.id}): dead: marked Cancelled" in site.told("flows.cli", "recover", "--resume")
    assert run.row["state_name"] == "Cancelled"

    worker = start_worker()
    run.retry()
    run.works()
    run.kill_with(worker)
    time.sleep(TOO_YOUNG_S)
    both = [site.start("flows.cli", "recover", "--resume", "--max-attempts", "9") for _ in range(2)]
    told = "".join(process.communicate(timeout=PATIENCE_S)[0] for process in both)
    assert told.count("dead: marked Crashed, resumes as attempt 4") == 1, told
    assert (run.row["state_name"], run.row["run_count"]) == ("AwaitingRetry", 3)
    assert {task["state_type"] for task in run.tasks} <= ENDED

    half_generated = site.points.hold(run.folder / "round-01/candidates/candidates-00001.parquet")
    half_evaluated.release()
    worker = start_worker()
    run.reaches(half_generated)
    worker.kill()
    finished |= run.finished()
    half_generated.release()
    run.becomes("Completed")
    _is_whole(run, finished)
    assert run.row["run_count"] == 4
    assert "No flow run says Running" in site.told("flows.cli", "recover")


def _told_dead(site: Site) -> str | None:
    told = site.told("flows.cli", "recover", "--resume")
    return told if "dead" in told else None
