"""The same command with a Prefect server to report to."""

import time
from collections.abc import Callable

import pytest

from tests.e2e.conftest import Case, asked

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def _ask(url: str, what: str, wanted: int) -> list[dict[str, object]]:
    """Rows arrive late: ask until they are there."""
    deadline = time.monotonic() + 60
    while True:
        rows: list[dict[str, object]] = asked("POST", f"{url}/{what}/filter", json={})
        if len(rows) >= wanted or time.monotonic() > deadline:
            return rows
        time.sleep(1)


def test_a_run_reports_to_the_server_in_the_environment(make_case: Callable[..., Case], server: str) -> None:
    made = make_case(rounds=1)
    case = Case(made.file, {**made.environment, "PREFECT_API_URL": server})
    status, output = case.run()
    assert status == 0, output
    assert "temporary server" not in output
    (run,) = _ask(server, "flow_runs", 1)
    assert (run["name"], run["state_type"]) == ("test · round 1 of 1", "COMPLETED")
    tasks = _ask(server, "task_runs", 8)
    assert {task["state_type"] for task in tasks} == {"COMPLETED"}
    assert "round 1/1 · train" in {task["name"] for task in tasks}
    artifacts = _ask(server, "artifacts", 5)
    assert {"test-round-1", "test-report", "test-reward"} <= {artifact["key"] for artifact in artifacts}
    assert "progress" in {artifact["type"] for artifact in artifacts}


def test_a_failed_stage_gives_its_cause_as_the_runs_state_message(make_case: Callable[..., Case], server: str) -> None:
    made = make_case(stage_timeout_s=1)
    case = Case(made.file, {**made.environment, "PREFECT_API_URL": server})
    status, output = case.run("run=late")
    assert status == 2
    assert "ran out of time" in output
    runs = [run for run in _ask(server, "flow_runs", 2) if str(run["name"]).startswith("late")]
    assert "ran out of time" in str(runs[0]["state"])
