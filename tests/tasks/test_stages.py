"""The task around a stage: Prefect shows a run, and what it cannot show costs the run nothing."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.logging import disable_run_logger

from data import store
from pco.progress import Progress
from pco.runs import remaining
from pco.specs import stages_of
from pco.stage import Stage
from tasks import stages
from tests import builders


def _server_is_gone(*_: Any, **__: Any) -> None:
    raise ConnectionError("no server")


class Executor:
    """One that gets on by a candidate at a time."""

    def __init__(self, manifest: store.Manifest) -> None:
        self.manifest = manifest

    def run(
        self, stage: Stage, *, on_progress: Callable[[Progress], None], on_log: Callable[[str], None]
    ) -> store.Manifest:
        for done in (1, 2, 3):
            on_progress(Progress(done, 3, "candidates"))
        return self.manifest


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setattr(stages, "_ARTIFACT_EVERY_S", 0)
    return builders.stage("score", builders.config(tmp_path))


@pytest.mark.parametrize("broken", ["create_progress_artifact", "update_progress_artifact"])
def test_a_server_that_does_not_answer_costs_the_picture_and_not_the_stage(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    monkeypatch.setattr(stages, "create_progress_artifact", lambda *_, **__: "id")
    monkeypatch.setattr(stages, broken, _server_is_gone)
    manifest = stage.finish(unit="candidates", rows_in=3, rows_out=3, dropped={}, started=0.0)
    with disable_run_logger():
        assert stages.run_stage.fn(stage, Executor(manifest)) == manifest


def test_the_page_of_a_stage_tells_how_far_it_is_and_the_time_to_go(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(stages, "create_progress_artifact", lambda _, *, description: shown.append(description) or "id")
    monkeypatch.setattr(stages, "update_progress_artifact", lambda *update: shown.append(update[-1]))
    manifest = stage.finish(unit="candidates", rows_in=3, rows_out=3, dropped={}, started=0.0)
    with disable_run_logger():
        stages.run_stage.fn(stage, Executor(manifest))
    first, *_, last = shown
    assert first == f"{stage.title}: 1/3 candidates"
    assert last == f"{stage.title}: 3/3 candidates, ETA 0 s"


def test_the_last_stage_that_works_tells_the_time_to_go_of_the_whole_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = builders.config(tmp_path, rounds=2)
    for number in (1, 2):
        for name in stages_of(config, number):
            if (number, name) != (2, "decide"):
                builders.stage(name, config, number=number).finish(
                    unit="rows", rows_in=0, rows_out=0, dropped={}, started=time.time() - 60
                )
    assert remaining.seconds_after(builders.stage("decide", config, number=2)) == 0
    assert remaining.seconds_after(builders.stage("train", config, number=2)) == pytest.approx(120, abs=5)
    in_round = len(stages_of(config, 1))
    assert remaining.seconds_after(builders.stage("decide", config, number=1)) == pytest.approx(60 * in_round, abs=9)
    assert remaining.seconds_after(builders.stage("prepare", config, number=0)) is None
    shutil.rmtree(config.folder / "round-01" / "decision")
    (config.folder / "round-01" / "decision").touch()  # what stands there instead is the business of that stage
    assert remaining.seconds_after(builders.stage("train", config, number=1)) is None
    assert remaining.seconds_after(builders.stage("test_start", config, number=2)) is None


def test_the_line_of_a_finished_stage_tells_of_its_judges_position_bias(tmp_path: Path) -> None:
    stage = builders.stage("score", builders.config(tmp_path))
    account = {"unit": "candidates", "rows_in": 2, "rows_out": 2, "dropped": {}, "started": 0.0}
    manifest = stage.finish(**account, metrics={"judge_position_bias": 0.75})
    assert "position bias 0.75" in stages.summary(manifest, reused=True)
    assert "judge" not in stages.summary(stage.finish(**account), reused=True)
