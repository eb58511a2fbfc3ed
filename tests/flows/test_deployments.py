"""What `prefect.yaml` says, and what `pco deploy` says when it cannot register it."""

from typing import Any

import pytest
import yaml
from prefect.flows import load_flow_from_entrypoint
from prefect.settings import PREFECT_API_URL, temporary_settings
from typer.testing import CliRunner

from flows.cli import app
from flows.deployments import LISTED as FILE

LISTED: list[dict[str, Any]] = yaml.safe_load(FILE.read_text())["deployments"]
SCHEDULES = [(one["entrypoint"], schedule) for one in LISTED for schedule in one.get("schedules", [])]


def test_the_schedules_are_of_every_kind_and_off() -> None:
    kinds = {kind for _, schedule in SCHEDULES for kind in ("cron", "interval", "rrule") if kind in schedule}
    assert kinds == {"cron", "interval", "rrule"}
    assert not any(schedule["active"] for _, schedule in SCHEDULES)


@pytest.mark.parametrize(("entrypoint", "schedule"), SCHEDULES)
def test_a_schedule_s_parameters_are_the_flow_s(entrypoint: str, schedule: dict[str, Any]) -> None:
    flow: Any = load_flow_from_entrypoint(entrypoint)
    assert flow.validate_parameters(schedule["parameters"])


@pytest.mark.parametrize("one", LISTED, ids=lambda one: one["name"])
def test_a_deployment_runs_one_at_a_time_and_the_others_wait(one: dict[str, Any]) -> None:
    assert one["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}


def test_without_a_server_the_command_says_what_to_set() -> None:
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["deploy"])
    assert result.exit_code == 2
    assert "PREFECT_API_URL: not set" in result.output


def test_a_server_that_does_not_answer_is_named() -> None:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["deploy"])
    assert result.exit_code == 2
    assert "http://127.0.0.1:9/api: no answer" in result.output
