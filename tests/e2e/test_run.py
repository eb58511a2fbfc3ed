"""`pco run` from the first prompt to the report, killed and resumed on the way."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import pyarrow as pa
import pytest

from data import files, store
from pco.config.run import RunConfig
from pco.runs.status import points
from pco.specs import StageName
from pco.stage import Stage
from tests.e2e.conftest import EPOCHS, Case

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(6000)]


@pytest.fixture(scope="module")
def finished(make_case: Callable[..., Case]) -> Case:
    case = make_case()
    status, output = case.run()
    assert status == 0, output
    assert "Report: " in output
    return case


def _stages(config: RunConfig) -> list[Stage]:
    return [Stage(name, number, config) for number, name in points(config)]


def _table(config: RunConfig, number: int, stage: StageName, table: str) -> pa.Table:
    return store.read_table(Stage(stage, number, config, {}).folder, table)


def _tables(config: RunConfig) -> dict[str, pa.Table]:
    """Every table of a run by where it lies, without the columns that hold times."""
    found = {}
    for stage in _stages(config):
        manifest = store.read_manifest(stage.folder)
        assert manifest is not None, stage.folder
        for table in {part.table for part in manifest.parts}:
            content = store.read_table(stage.folder, table)
            found[f"{stage.round}/{table}/{stage.name}"] = content.drop_columns(
                [name for name in content.column_names if name == "seconds"]
            )
    return found


def test_a_policy_measures_outside_of_its_run_as_inside(finished: Case, tmp_path: Path) -> None:
    config = finished.config
    told = finished.tell("evaluate", f"{config.folder}:2", "--config", str(finished.file), "--out", str(tmp_path))
    assert "reward" in told
    (outside,) = (path.parent for path in tmp_path.rglob("evaluations-*.parquet"))
    own = {
        tuple(row[key] for key in ("measure", "mode", "prompt_id", "sample")): row["value"]
        for row in _table(config, 2, "evaluate", "evaluations").to_pylist()
    }
    for row in store.read_table(outside, "evaluations").to_pylist():
        key = tuple(row[key] for key in ("measure", "mode", "prompt_id", "sample"))
        assert row["value"] == pytest.approx(own[key], abs=1e-3)


def test_every_stage_of_every_round_is_done_and_accounted_for(finished: Case) -> None:
    for stage in _stages(finished.config):
        manifest = store.read_manifest(stage.folder)
        assert manifest is not None, stage.title
        assert manifest.rows_in == manifest.rows_out + sum(manifest.dropped.values())
    assert (finished.config.folder / "report.html").stat().st_size > 10_000


def test_each_row_is_traceable_to_the_policy_that_made_it(finished: Case) -> None:
    config = finished.config
    first, second = (_table(config, number, "generate", "candidates") for number in (1, 2))
    trained = store.read_manifest(Stage("train", 1, config, {}).folder)
    assert trained is not None
    assert set(second["policy"].to_pylist()) == {trained.outputs["policy"]}
    assert set(first["policy"].to_pylist()).isdisjoint(second["policy"].to_pylist())
    assert files.folder_digest(config.folder / "round-01" / "policy") == trained.outputs["policy"]


def test_training_changes_the_policy_towards_the_chosen_completions(finished: Case) -> None:
    log = _table(finished.config, 1, "train", "train_log").to_pylist()
    first, last = ([row["margin"] for row in log if row["epoch"] == epoch] for epoch in (0, EPOCHS - 1))
    assert fmean(last) > fmean(first)


def test_a_finished_run_runs_nothing_again(finished: Case) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.config.folder.rglob("*.parquet")}
    status, output = finished.run()
    assert status == 0
    assert "server" not in output
    assert "round 2 promoted" in output and "Report: " in output
    assert {path: path.stat().st_mtime_ns for path in finished.config.folder.rglob("*.parquet")} == before


def test_a_round_that_the_gate_refuses_ends_the_run_and_keeps_the_last_good_policy(
    make_case: Callable[..., Case],
) -> None:
    case = make_case(gate__require__reward__min_change=1.0, rounds=1)
    status, output = case.run()
    assert status == 0, output
    assert "round 1 refused: reward" in output
    decisions = _table(case.config, 1, "decide", "decisions").to_pylist()
    assert [row["rule"] for row in decisions if not row["passed"]] == ["reward change"]
    told = case.tell("fork", str(case.folder), "lenient", "--from", "decide", "--round", "1", *_LENIENT)
    assert "shares 7 stages with test" in told
    told = case.tell("resume", str(case.folder.with_name("lenient")))
    assert "round 1 promoted" in told


_LENIENT = ("--set", "gate.require.reward.min_change=-1.0")


def _servers(home: str) -> list[str]:
    listed = subprocess.run(["ps", "eww", "-eo", "args"], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if "create_app" in line and f"PREFECT_HOME={home} " in line]


MOMENTS = [  # before which a stage is killed
    "round-00/evaluation/evaluations-00000.parquet",
    "round-01/candidates/candidates-00002.parquet",
    "round-01/.policy.tmp",
    "round-01/training/manifest.json",
    "round-02/candidates/candidates-00001.parquet",
]


def test_a_run_killed_again_and_again_resumes_to_the_same_tables(
    make_case: Callable[..., Case], finished: Case
) -> None:
    case = make_case()
    for moment in MOMENTS:
        case.kill_before(moment)
    status, output = case.run()
    assert status == 0, output
    assert _servers(case.environment["PREFECT_HOME"]) == []
    resumed, whole = _tables(case.config), _tables(finished.config)
    assert resumed.keys() == whole.keys()
    assert [name for name in whole if not resumed[name].equals(whole[name])] == []
