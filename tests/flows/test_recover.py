"""Which flow runs are dead, and what the command says when it cannot know."""

import logging
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State, TaskRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import AwaitingConcurrencySlot
from typer.testing import CliRunner

from data.errors import BadInput
from flows import recover
from flows.cli import app
from flows.recover import FOLDER, WAITING, attempts, folder_of, is_dead, resume_crashed, resumed
from pco.runs.folder import holder, opened
from tests import builders


@pytest.mark.parametrize(
    ("age_s", "held_by", "dead"),
    [
        (60.0, None, True),
        (60.0, "another", True),
        (60.0, "own", False),
        (60.0, "", False),
        (1.0, None, False),
        (1.0, "another", False),
    ],
)
def test_a_flow_run_is_dead_if_it_is_not_new_and_its_folder_is_free_or_another_s(
    age_s: float, held_by: str | None, dead: bool
) -> None:
    assert is_dead("own", age_s, held_by) is dead


def test_the_lock_tells_which_flow_run_holds_a_folder(tmp_path: Path) -> None:
    config = builders.config(tmp_path)
    with opened(config, "some-id"):
        assert holder(config.folder) == "some-id"
    assert holder(config.folder) is None


def test_a_holder_without_a_flow_run_is_unknown_but_there(tmp_path: Path) -> None:
    config = builders.config(tmp_path)
    with opened(config):
        assert holder(config.folder) == ""
        (config.folder / ".lock").write_text("{")
        assert holder(config.folder) == ""


def test_a_folder_on_another_machine_is_not_taken_for_a_dead_run(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no run here"):
        holder(tmp_path / "elsewhere")


def test_a_flow_run_s_folder_is_what_it_told_the_server() -> None:
    assert folder_of(FlowRun(flow_id=uuid4(), labels={FOLDER: "/data/runs/a"})) == Path("/data/runs/a")
    assert folder_of(FlowRun(flow_id=uuid4(), parameters={"config": {"run": "a", "runs_dir": "/data/runs"}})) is None


def test_what_began_too_often_or_has_no_deployment_is_not_resumed() -> None:
    dead = FlowRun(flow_id=uuid4(), run_count=3)
    never_asked = cast(SyncPrefectClient, None)
    assert "`pco resume /runs/a`" in resumed(never_asked, dead, Path("/runs/a"), 3)
    deployed = OneRun(dead.model_copy(update={"deployment_id": uuid4()}))
    assert "not resumed after 3 attempts" in resumed(
        cast(SyncPrefectClient, deployed), deployed.run, Path("/runs/a"), 3
    )
    assert deployed.asked == []


RUNNING, PENDING = State(type="RUNNING"), State(type="PENDING")
WAITS: State = AwaitingConcurrencySlot()
AFTER_WORK = st.sampled_from([State(type="CRASHED"), State(type="FAILED"), State(type="PAUSED", name="Suspended")])
WORKED = st.builds(lambda end: [PENDING, RUNNING, end], AFTER_WORK)
QUEUED = st.sampled_from(
    [[PENDING, RUNNING, WAITS], [PENDING, WAITS]]
)  # by us for its folder, by the server for a slot


def dated(states: list[State]) -> list[State]:
    """The states, one after the other."""
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    return [state.model_copy(update={"timestamp": begin + timedelta(seconds=i)}) for i, state in enumerate(states)]


@given(st.lists(WORKED | QUEUED, max_size=12))
def test_only_what_came_to_work_counts_as_an_attempt(parts: list[list[State]]) -> None:
    states = [state for part in parts for state in part]
    run = FlowRun(flow_id=uuid4(), run_count=sum(state.is_running() for state in states))
    assert attempts(run, dated(states)[::-1]) == sum(part[-1].name != WAITING for part in parts)


class OneRun:
    """A server that knows one flow run."""

    def __init__(self, run: FlowRun) -> None:
        self.run = run
        self.asked: list[str | None] = []
        self.states: list[State] = []

    def read_flow_run(self, _: UUID) -> FlowRun:
        return self.run

    def read_flow_run_states(self, _: UUID) -> list[State]:
        return self.states

    def read_task_runs(self, **_: object) -> list[TaskRun]:
        return []

    def set_flow_run_state(self, _: UUID, state: State) -> None:
        self.run = self.run.model_copy(update={"state_type": state.type, "state_name": state.name})
        self.asked.append(state.name)


@pytest.fixture
def crashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OneRun:
    """A flow run of a deployment that crashed once, and left its folder."""
    config = builders.config(tmp_path)
    with opened(config):
        labels = {FOLDER: str(config.folder)}
    run = FlowRun(flow_id=uuid4(), labels=labels, deployment_id=uuid4(), run_count=1, state_type="CRASHED")
    server = OneRun(run)
    monkeypatch.setattr(recover, "get_client", lambda **_: nullcontext(server))
    return server


def test_a_crash_that_is_told_twice_is_resumed_once(crashed: OneRun) -> None:
    told = [*resume_crashed(crashed.run.id, 3), *resume_crashed(crashed.run.id, 3)]
    assert told[0].endswith("resumes as attempt 2") and told[1].endswith("AwaitingRetry by now")
    assert crashed.asked == ["AwaitingRetry"]


def test_a_run_that_waited_is_resumed_all_the_same(crashed: OneRun) -> None:
    crashed.run = crashed.run.model_copy(update={"run_count": 3})
    crashed.states = dated([RUNNING, WAITS, RUNNING, WAITS, RUNNING, State(type="CRASHED")])
    assert [line.endswith("resumes as attempt 2") for line in resume_crashed(crashed.run.id, 2)] == [True]


def test_a_crash_is_not_resumed_where_another_works_or_after_too_many_attempts(crashed: OneRun, tmp_path: Path) -> None:
    with opened(builders.config(tmp_path), "another"):
        assert [line.endswith("left alone: in work") for line in resume_crashed(crashed.run.id, 3)] == [True]
    assert ["after 1 attempts" in line for line in resume_crashed(crashed.run.id, 1)] == [True]
    assert crashed.asked == []


def test_without_a_server_the_command_says_what_to_set() -> None:
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["recover"])
    assert result.exit_code == 2
    assert "PREFECT_API_URL: not set" in result.output


def test_a_server_that_does_not_answer_is_named() -> None:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["recover"])
    assert result.exit_code == 2
    assert "http://127.0.0.1:9/api: no answer" in result.output


def test_a_server_that_does_not_answer_costs_a_warning_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unreachable(**_: object) -> None:
        raise ConnectionError("nobody there")

    monkeypatch.setattr(recover, "get_client", unreachable)
    recover.take_over(builders.config(tmp_path), "own", logging.getLogger("test"))
    assert "Could not mark dead flow runs on the Prefect server: nobody there" in caplog.text
