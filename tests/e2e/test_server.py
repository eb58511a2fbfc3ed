"""The same command with a Prefect server to report to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.comparison import evaluate_policies
from flows.recover import FOLDER
from tests.e2e.conftest import Case, asked
from tests.points import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(6000)]


def _ask(url: str, what: str, wanted: int, **body: Any) -> list[dict[str, Any]]:
    """Rows arrive late: ask until they are there."""

    def come() -> list[dict[str, Any]] | None:
        rows: list[dict[str, Any]] = asked("POST", f"{url}/{what}/filter", json=body)
        return rows if len(rows) >= wanted else None

    rows: list[dict[str, Any]] = until(come, f"{wanted} {what}", every_s=1)
    return rows


def test_a_run_reports_to_the_server_in_the_environment(make_case: Callable[..., Case], server: str) -> None:
    case = make_case(rounds=1).under(PREFECT_API_URL=server)
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
    case = make_case(stage_timeout_s=1).under(PREFECT_API_URL=server)
    case.points.hold("late/round-00/prompts/manifest.json")
    status, output = case.run("run=late")
    assert status == 2
    assert "ran out of time" in output
    runs = [run for run in _ask(server, "flow_runs", 2) if str(run["name"]).startswith("late")]
    assert "ran out of time" in str(runs[0]["state"])


def test_policies_are_evaluated_as_a_flow_with_a_task_for_each_stage_of_each(
    make_case: Callable[..., Case], server: str, tiny: Path, tmp_path: Path, one_thread: None
) -> None:
    case = make_case(evaluate__samples=1)
    with temporary_settings({PREFECT_API_URL: server}):
        evaluate_policies(policies=f"{tiny}\n", config=str(case.file), out=str(tmp_path))
    (run,) = [run for run in _ask(server, "flow_runs", 1) if run["name"] == str(tiny)]
    (made,) = tmp_path.iterdir()
    assert (run["state_type"], run["labels"][FOLDER]) == ("COMPLETED", str(made))
    own = {"flow_runs": {"id": {"any_": [run["id"]]}}}
    assert {task["name"] for task in _ask(server, "task_runs", 2, **own)} == {"tiny · prepare", "tiny · evaluate"}
    artifacts = {str(artifact["key"]): artifact["data"] for artifact in _ask(server, "artifacts", 1, **own)}
    assert "perplexity of human text" in artifacts["pco-evaluate"]


def test_the_automation_for_crashed_runs_is_made_once_keeps_its_switch_and_goes_when_told(
    make_case: Callable[..., Case], server: str
) -> None:
    case = make_case().under(PREFECT_API_URL=server)

    def deployed(attempts: int) -> list[dict[str, Any]]:
        case.tell("deploy", "--resume-crashed", str(attempts))
        found: list[dict[str, Any]] = asked("POST", f"{server}/automations/filter", json={})
        return found

    (one,) = deployed(3)
    assert one["enabled"]
    asked("PATCH", f"{server}/automations/{one['id']}", json={"enabled": False})
    (same,) = deployed(2)
    assert (same["id"], same["enabled"]) == (one["id"], False)
    assert same["actions"][0]["parameters"]["max_attempts"] == 2
    assert deployed(0) == []
