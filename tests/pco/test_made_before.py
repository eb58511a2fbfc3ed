"""What earlier versions of this project made stays finished: fingerprints, and a run that goes on.

`tests/made_before/fingerprints.json` was written by the code of commit c3cf5c3 (version 0.1).
"""

import json
from pathlib import Path

import pytest

from pco.config.reward_training import RewardTraining
from pco.stage import Artifact, RewardStageName, Stage
from tests import builders

BEFORE = json.loads((Path(__file__).parents[1] / "made_before" / "fingerprints.json").read_text(encoding="utf-8"))
FILES = {"prompts__preferences": "preferences.jsonl", "prompts__feedback": "feedback.jsonl"}
NAMES: dict[str, RewardStageName] = {"test_reward": "evaluate_reward", "train_reward": "train_reward", "split": "split"}


@pytest.mark.parametrize("name", BEFORE["runs"])
def test_each_stage_has_the_fingerprint_that_earlier_versions_gave_it(name: str, tmp_path: Path) -> None:
    case = BEFORE["runs"][name]
    builders.write_prompts(tmp_path, ["a"], ["b"])
    builders.write_jsonl(tmp_path / "preferences.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    builders.write_jsonl(tmp_path / "feedback.jsonl", [{"prompt": "p", "completion": "c", "good": True}])
    changes = {key: str(tmp_path / FILES[key]) if key in FILES else value for key, value in case["changes"].items()}
    stages = builders.played(builders.config(tmp_path, **changes), refused=case["refused"])
    assert {f"{stage.round} {stage.name}": stage.fingerprint for stage in stages} == case["fingerprints"]


@pytest.mark.parametrize("name", BEFORE["reward_trainings"])
def test_each_stage_of_a_reward_training_has_the_fingerprint_that_earlier_versions_gave_it(name: str) -> None:
    case = BEFORE["reward_trainings"][name]
    required = {"run": "r", "model": "some/model", "preferences": "/nowhere/p.jsonl"}
    config = RewardTraining.model_validate(required | case["changes"])
    pairs = Artifact(Path("/nowhere"), "0123456789abcdef")
    for recorded, fingerprint in case["fingerprints"].items():
        assert Stage(NAMES[recorded], 0, config, {"pairs": pairs}).fingerprint == fingerprint
