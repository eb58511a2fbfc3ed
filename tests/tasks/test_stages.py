"""The task around a stage: Prefect shows a run, and what it cannot show costs the run nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.logging import disable_run_logger

from data import store
from pco.progress import Progress
from pco.stage import Stage
from tasks import stages
from tests import builders


def _server_is_gone(*_: Any, **__: Any) -> None:
    raise ConnectionError("no server")


@pytest.mark.parametrize("broken", ["create_progress_artifact", "update_progress_artifact"])
def test_a_server_that_does_not_answer_costs_the_picture_and_not_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    monkeypatch.setattr(stages, "_ARTIFACT_EVERY_S", 0)
    monkeypatch.setattr(stages, "create_progress_artifact", lambda *_, **__: "id")
    monkeypatch.setattr(stages, broken, _server_is_gone)
    stage = builders.stage("score", builders.config(tmp_path))
    manifest = stage.finish(unit="candidates", rows_in=3, rows_out=3, dropped={}, started=0.0)

    class ReportingExecutor:
        def run(self, _: Stage, *, on_progress: Callable[[Progress], None], **__: Any) -> store.Manifest:
            for done in (1, 2, 3):
                on_progress(Progress(done, 3, "candidates"))
            return manifest

    with disable_run_logger():
        assert stages.run_stage.fn(stage, ReportingExecutor()) == manifest


def test_the_line_of_a_finished_stage_tells_of_its_judges_position_bias(tmp_path: Path) -> None:
    stage = builders.stage("score", builders.config(tmp_path))
    account = {"unit": "candidates", "rows_in": 2, "rows_out": 2, "dropped": {}, "started": 0.0}
    manifest = stage.finish(**account, metrics={"judge_position_bias": 0.75})
    assert "position bias 0.75" in stages.summary(manifest, reused=True)
    assert "judge" not in stages.summary(stage.finish(**account), reused=True)
