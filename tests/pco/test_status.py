"""What a run's folder says of the run."""

from pathlib import Path

import pytest

from data import store
from data.errors import BadInput, CorruptArtifact
from pco import launcher, status
from pco.config import RunConfig
from pco.rundir import opened
from pco.stage import ROUND_STAGES, START_STAGES
from tests import builders


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    made = builders.config(tmp_path, rounds=1)
    with opened(made):
        pass
    return made


def _states(config: RunConfig) -> list[str]:
    return [line.state for line in status.of_run(config)]


def test_every_stage_of_every_round_has_a_line_in_the_order_they_run(config: RunConfig) -> None:
    lines = status.of_run(config)
    assert [line.stage for line in lines] == [*START_STAGES, *ROUND_STAGES]
    assert {line.state for line in lines} == {"not started"}


def test_only_losses_with_a_reference_have_its_stage(config: RunConfig) -> None:
    dpo = builders.changed(config, train__loss={"kind": "dpo"})
    assert "refer" in [line.stage for line in status.of_run(dpo)]


def test_a_stage_that_failed_says_why_and_one_that_was_killed_that_it_was(config: RunConfig) -> None:
    stage = builders.stage("score", config, {"candidates": builders.PRETEND})
    with pytest.raises(CorruptArtifact):
        launcher.run(stage)
    (line,) = [line for line in status.of_run(config) if line.stage == "score"]
    assert line.state.startswith("failed: /nowhere: has no manifest.json")
    launcher.error_path(config, 1, "score").unlink()
    assert "interrupted" in _states(config)


def test_a_run_that_is_held_is_running(config: RunConfig) -> None:
    log = launcher.error_path(config, 0, "prepare").with_suffix(".log")
    store.write_text(log, "")
    assert _states(config)[0] == "interrupted"
    with opened(config):
        assert _states(config)[0] == "running"
        assert [line.state for line in status.of_all(Path(config.runs_dir))] == ["running"]
    assert [line.state for line in status.of_all(Path(config.runs_dir))] == ["unfinished"]


def test_committed_shards_and_dropped_rows_are_counted(config: RunConfig) -> None:
    folder = builders.stage("score", config).folder
    builders.finished(folder, {"scores": [builders.score_row("p", 0, 1.0)]})
    (line,) = [line for line in status.of_run(config) if line.stage == "score"]
    assert (line.state, line.rows) == ("done", "1 rows")
    (folder / store.MANIFEST).unlink()
    (line,) = [line for line in status.of_run(config) if line.stage == "score"]
    assert line.rows == "1 shards"


def test_a_table_that_no_stage_holds_is_refused(config: RunConfig) -> None:
    with pytest.raises(BadInput, match="no finished stage holds a `pairs` table in round 1"):
        status.folders_with(config, "pairs", 1)
