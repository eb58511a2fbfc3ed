"""What earlier versions of this project made stays finished: fingerprints, and a run that goes on.

Everything in `tests/made_before` was made by the code of commit c3cf5c3 (version 0.1): two runs of a tiny model,
one finished, one killed while its first round was scored, without the models; what `pco status` said of them; and the
fingerprints of the stages of many configs.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from data.store import Manifest
from pco.config.reward_training import RewardTraining
from pco.config.train import as_it_was
from pco.execution.executor import LocalExecutor
from pco.rounds import walk
from pco.runs.folder import opened, read_config
from pco.runs.status import RunState
from pco.specs import RewardStageName
from pco.stage import Artifact, Stage
from tests import builders, made_before

FOLDER = made_before.FOLDER
BEFORE = json.loads((FOLDER / "fingerprints.json").read_text(encoding="utf-8"))
STATUS = json.loads((FOLDER / "status.json").read_text(encoding="utf-8"))
FILES = {"prompts__preferences": "preferences.jsonl", "prompts__feedback": "feedback.jsonl"}
NAMES: dict[str, RewardStageName] = {"test_reward": "evaluate_reward", "train_reward": "train_reward", "split": "split"}


@pytest.mark.parametrize("name", BEFORE["runs"])
def test_each_stage_has_the_fingerprint_that_earlier_versions_gave_it(name: str, tmp_path: Path) -> None:
    case = BEFORE["runs"][name]
    builders.write_prompts(tmp_path, ["a"], ["b"])
    builders.write_jsonl(tmp_path / "preferences.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    builders.write_jsonl(tmp_path / "feedback.jsonl", [{"prompt": "p", "completion": "c", "good": True}])
    changes = {key: str(tmp_path / FILES[key]) if key in FILES else value for key, value in case["changes"].items()}
    if "train__loss" in changes:  # as it stands in the config of a run of that time
        changes["train__loss"] = as_it_was({"loss": changes["train__loss"]})["loss"]
    stages = builders.played(builders.config(tmp_path, **changes), refused=case["refused"])
    assert [f"{stage.round} {stage.name}" for stage in stages] == list(case["fingerprints"])
    for stage, fingerprint in zip(stages, case["fingerprints"].values(), strict=True):
        if stage.name == "decide":  # its version was raised; what earlier ones decided stays
            assert stage.changes(replace(stage.finished(), fingerprint=fingerprint)) == []  # type: ignore[type-var]
        else:
            assert stage.fingerprint == fingerprint


@pytest.mark.parametrize("name", BEFORE["reward_trainings"])
def test_each_stage_of_a_reward_training_has_the_fingerprint_that_earlier_versions_gave_it(name: str) -> None:
    case = BEFORE["reward_trainings"][name]
    required = {"run": "r", "model": "some/model", "preferences": "/nowhere/p.jsonl"}
    # What it was by default; the config.yaml of each training of that time says so.
    train = {"precision": "bf16"} | case["changes"].get("train", {})
    config = RewardTraining.model_validate(required | case["changes"] | {"train": train})
    pairs = Artifact(Path("/nowhere"), "0123456789abcdef")
    for recorded, fingerprint in case["fingerprints"].items():
        assert Stage(NAMES[recorded], 0, config, {"pairs": pairs}).fingerprint == fingerprint


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return made_before.runs(tmp_path)


@pytest.mark.parametrize("name", STATUS)
def test_the_status_of_a_run_made_before_is_what_it_was(runs: Path, name: str) -> None:
    state = RunState(read_config(runs / name))
    lines = [[line.round, line.stage, line.state, line.note, line.rows, line.dropped] for line in state.stages]
    assert {"stages": lines, "to_do": state.to_do, "reasons": state.reasons} == STATUS[name]


@pytest.mark.process
def test_a_run_made_before_goes_on_and_its_tables_come_out_with_the_same_bytes(runs: Path) -> None:
    interrupted, finished = (read_config(runs / name) for name in ("interrupted", "finished"))
    resumed: dict[str, Stage] = {}

    def resume(stage: Stage) -> Manifest:
        if stage.name == "train":
            raise _Enough  # its weights would depend on the processor
        resumed[stage.name] = stage
        return LocalExecutor().run(stage)

    with pytest.raises(_Enough), opened(interrupted):
        walk(interrupted, resume)
    assert list(resumed) == ["prepare", "evaluate", "generate", "score", "pair"]
    for stage in resumed.values():
        before = Stage(stage.name, stage.round, finished).folder
        assert _parts(stage.folder) == _parts(before)


def _parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


class _Enough(Exception):
    pass


def test_an_error_that_an_earlier_version_kept_as_text_is_still_told(runs: Path) -> None:
    config = read_config(runs / "interrupted")
    Stage("score", 1, config).error_file.write_text("the disk is full", encoding="utf-8")
    (line,) = [line for line in RunState(config).stages if (line.round, line.stage) == (1, "score")]
    assert (line.state, line.note) == ("failed", "the disk is full (1/3 shards kept)")
