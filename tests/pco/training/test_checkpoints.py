"""Training killed in the middle goes on from its last checkpoint and ends where it would have ended."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from data import store
from data.errors import BadInput, StageFailed
from pco.execution import launcher
from pco.progress import Progress
from pco.stage import Stage, round_folder
from pco.training import checkpoints
from tests import builders
from tests.points import Points

SETTINGS = {
    "train__precision": "fp32",
    "train__learning_rate": 1e-3,
    "train__pairs_per_step": 2,
    "train__epochs": 2,
    "train__checkpoint_steps": 3,
    "train__lora": {"r": 2, "dropout": 0.2},  # dropout, so that random numbers matter too
}


def _stage(folder: Path, tiny: Path, tokenizer: Any, **changes: Any) -> Stage:
    config = builders.config(folder, tiny, **{**SETTINGS, **changes})
    pairs = builders.finished(folder / "pairs", {"pairs": builders.pair_rows(tokenizer, 9)})
    return Stage("train", 1, config, {"policy": builders.model(tiny), "pairs": pairs})


def _log(stage: Stage) -> list[dict[str, Any]]:
    rows = store.read_table(stage.folder, "train_log").to_pylist()
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.e2e
def test_a_killed_training_resumes_exactly_and_redoes_at_most_the_steps_since_its_checkpoint(
    tmp_path: Path, tiny: Path, tokenizer: Any, one_thread: None, points: Points
) -> None:
    whole = _stage(tmp_path / "whole", tiny, tokenizer)
    launcher.run(whole)
    assert not (whole.folder / "checkpoints").exists()

    killed = _stage(tmp_path / "killed", tiny, tokenizer)
    points.kill("checkpoints/step-00000009.json", "group")
    with pytest.raises(StageFailed, match="SIGKILL"):
        launcher.run(killed)
    assert store.read_manifest(killed.folder) is None
    steps: list[Progress] = []
    launcher.run(killed, on_progress=steps.append)
    assert min(step.done for step in steps) == 6
    assert _log(killed) == _log(whole)
    ours, theirs = (load_file(round_folder(s.config, 1) / "policy/model.safetensors") for s in (killed, whole))
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_the_newest_whole_checkpoint_of_this_training_is_taken(tmp_path: Path) -> None:
    assert checkpoints.latest(tmp_path, "ours") is None
    builders.checkpoint(tmp_path, 3, "ours")
    builders.checkpoint(tmp_path, 12, "ours")
    builders.checkpoint(tmp_path, 15, "another")
    (tmp_path / "step-00000018").mkdir()  # half-written: without its marker
    found = checkpoints.latest(tmp_path, "ours")
    assert found is not None
    assert (found.steps, found.tag) == (12, "step-00000012")


@pytest.mark.parametrize("marker", ['{"fingerprint": "ou', "null", "[]", '{"fingerprint": "ours"}'])
def test_a_damaged_marker_is_passed_over(tmp_path: Path, marker: str) -> None:
    builders.checkpoint(tmp_path, 3, "ours")
    builders.checkpoint(tmp_path, 6, "ours").with_suffix(".json").write_text(marker)
    found = checkpoints.latest(tmp_path, "ours")
    assert found is not None
    assert found.steps == 3


@pytest.mark.parametrize("damage", ["cut short", "gone", "without its folder"])
def test_a_checkpoint_whose_files_are_not_those_written_is_passed_over(tmp_path: Path, damage: str) -> None:
    builders.checkpoint(tmp_path, 3, "ours")
    tag = builders.checkpoint(tmp_path, 6, "ours")
    match damage:
        case "cut short":
            (tag / "weights").write_text("w")
        case "gone":
            (tag / "weights").unlink()
        case _:
            shutil.rmtree(tag)
    found = checkpoints.latest(tmp_path, "ours")
    assert found is not None
    assert found.steps == 3
    assert checkpoints.progress(tmp_path.parent) == (0, 0)


def test_checkpoints_that_a_training_cannot_use_are_dropped_before_they_crowd_out_its_own(tmp_path: Path) -> None:
    for steps in (40, 50):
        builders.checkpoint(tmp_path, steps, "of an attempt with another zero_stage")
    builders.checkpoint(tmp_path, 20, "ours")
    (tmp_path / "step-00000030").mkdir()
    checkpoints.keep_only(tmp_path, "ours")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000020", "step-00000020.json"]


def test_checkpoint_settings_decide_no_result(tmp_path: Path, tiny: Path, tokenizer: Any) -> None:
    often, seldom = (
        _stage(tmp_path, tiny, tokenizer, train__checkpoint_steps=steps, train__keep_checkpoints=keep)
        for steps, keep in ((1, 1), (99, 5))
    )
    assert often.fingerprint == seldom.fingerprint


def test_a_training_that_diverges_is_ended_by_name_and_not_tried_again(
    tmp_path: Path, tiny: Path, tokenizer: Any, one_thread: None
) -> None:
    stage = _stage(tmp_path, tiny, tokenizer, train__learning_rate=1e30, train__lora=None)
    with pytest.raises(BadInput, match="training has diverged"):
        launcher.run(stage)
    assert store.read_manifest(stage.folder) is None
