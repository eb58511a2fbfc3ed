"""Reward trainings with the real DeepSpeed: how the work is split or cut changes nothing but rounding."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from data import store
from data.errors import CorruptArtifact, RunConflict, StageFailed
from pco import rewards
from pco.config.reward import ModelReward
from pco.config.reward_training import RewardTraining
from pco.execution import launcher
from pco.report import reward as report
from pco.reward_training import order
from pco.runs.folder import opened, read_config
from pco.stage import Stage
from tests import tiny_reward
from tests.pco.reward_training.conftest import training_config
from tests.points import Points

pytestmark = pytest.mark.e2e

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
BASE = {
    "train__precision": "fp32",
    "train__learning_rate": 1e-3,
    "train__pairs_per_step": 4,
    "train__micro_batch_pairs": 8,
    "train__epochs": 2,
    "train__length_penalty": 0.5,
}


@dataclass(frozen=True)
class Trained:
    """What a finished training left on disk."""

    config: RewardTraining

    def stage(self, name: Any) -> Stage[RewardTraining]:
        return Stage(name, 0, self.config, {})

    @property
    def log(self) -> list[dict[str, Any]]:
        return store.read_table(self.stage("train_reward").folder, "reward_log").to_pylist()

    @property
    def model(self) -> Path:
        return Stage("train_reward", 0, self.config).model_folder

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.model / "model.safetensors")


Train = Callable[..., Trained]


def done(config: RewardTraining, do: Callable[..., store.Manifest] = launcher.run) -> Trained:
    with opened(config):
        order.walk(config, do)
    return Trained(config)


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory, tiny: Path, one_thread: None) -> Train:
    """Train with some settings, once per set of settings."""
    known: dict[str, Trained] = {}

    def trained(model: Path = tiny, **settings: Any) -> Trained:
        key = repr((model, sorted(settings.items())))
        if key not in known:
            folder = tmp_path_factory.mktemp("reward")
            known[key] = done(training_config(folder, model, **{**BASE, **settings}))
        return known[key]

    return trained


def same_training(one: Trained, other: Trained) -> None:
    for row, other_row in zip(one.log, other.log, strict=True):
        for column in set(row) - {"seconds"}:
            assert row[column] == pytest.approx(other_row[column], rel=1e-4, abs=1e-6), (row["step"], column)
    assert one.weights.keys() == other.weights.keys()
    for name, weight in one.weights.items():
        torch.testing.assert_close(weight, other.weights[name], **CLOSE, msg=lambda m, name=name: f"{name}: {m}")


def test_one_pair_at_a_time_trains_as_all_at_once(train: Train) -> None:
    same_training(train(train__micro_batch_pairs=1, train__layout="shared"), train(train__layout="padded"))


@pytest.mark.parametrize("zero", [0, 3])
def test_two_processes_train_as_one(train: Train, zero: int) -> None:
    split = {"train__processes": 2, "train__zero_stage": zero, "train__micro_batch_pairs": 1, "train__layout": "shared"}
    same_training(train(**split), train())


def test_training_tells_the_training_pairs_apart(train: Train) -> None:
    log = train().log
    assert log[-1]["loss"] < log[0]["loss"]
    assert log[-1]["margin"] > log[0]["margin"]


def test_a_run_scores_with_the_trained_model_what_the_test_scored_which_is_the_models_own_logit(train: Train) -> None:
    trained = train()
    pairs = store.read_table(trained.stage("split").folder, "reward_pairs").to_pylist()
    heldout = [row for row in pairs if row["split"] == "heldout"]
    tested = store.read_table(trained.stage("evaluate_reward").folder, "reward_tests").to_pylist()
    network = AutoModelForSequenceClassification.from_pretrained(trained.model).eval()
    reward = rewards.load(ModelReward(model=str(trained.model)))
    for side in ("chosen", "rejected"):
        scored = reward.score([{"source_prompt": row["prompt"], "completion": row[side]} for row in heldout])
        with torch.inference_mode():
            logits = [float(network(torch.tensor([row[f"{side}_token_ids"]])).logits) for row in heldout]
        assert [score.value for score in scored] == pytest.approx(logits, abs=1e-5)
        assert [row[f"reward_{side}"] for row in tested] == pytest.approx(logits, abs=1e-5)
    assert {row["reward_model"] for row in tested} == {reward.digest}


def test_a_finished_training_does_nothing_when_run_again(train: Train) -> None:
    trained = train()
    before = {path: path.stat().st_mtime_ns for path in trained.config.folder.rglob("*") if path.name != "config.yaml"}

    def refuse(stage: Stage[Any]) -> store.Manifest:
        manifest = stage.finished()
        assert manifest is not None
        return manifest

    order.walk(trained.config, refuse)
    assert order.is_finished(trained.config)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_setting_under_the_same_name_is_refused_and_pco_status_says_what_it_is(train: Train) -> None:
    config = train().config
    other = config.model_copy(update={"seed": 7})
    with pytest.raises(RunConflict, match="(?s)seed: 0 there, 7 now"), opened(other):
        pass
    with pytest.raises(Exception, match="`pco reward train"):
        read_config(config.folder)


def test_the_report_names_the_rule_beside_the_reward_on_the_page_as_in_markdown(train: Train) -> None:
    config = train().config
    page, text = report.write(config).read_text(), report.as_markdown(config)
    for told in ("Reward, all pairs", "Longer wins, all pairs", "Reward, length-matched"):
        assert told in page
    assert "Longer wins" in text
    assert page.count("<svg") == 3


LORA = {"train__lora": {"r": 4, "alpha": 8.0}}


def test_adapters_are_merged_into_a_reward_model_whose_head_has_learned_too(train: Train, tiny: Path) -> None:
    trained = train(**LORA)
    before = load_file(tiny / "model.safetensors")
    assert not list(trained.model.glob("adapter*"))
    adapted = {name for name, weight in trained.weights.items() if name not in before or not weight.equal(before[name])}
    assert adapted == {name for name in before if "_proj" in name} | {"score.weight"}
    assert trained.log[-1]["loss"] < trained.log[0]["loss"]


def test_an_encoder_and_a_reward_model_without_a_padding_token_learn_as_well(
    train: Train, tmp_path: Path, tokenizer: Any
) -> None:
    for model in (tiny_reward.make_encoder(tmp_path / "e", tokenizer), tiny_reward.make(tmp_path / "r", tokenizer)):
        trained = train(model, train__max_pair_tokens=90)
        assert json.loads((trained.model / "config.json").read_text())["pad_token_id"] == tokenizer.pad_token_id
        assert trained.log[-1]["loss"] < trained.log[0]["loss"]


def test_a_training_killed_in_the_middle_resumes_and_ends_where_it_would_have_ended(
    train: Train, tmp_path: Path, tiny: Path, points: Points
) -> None:
    config = training_config(tmp_path, tiny, **BASE, train__checkpoint_steps=2)
    points.kill("checkpoints/step-00000004.json", "group")
    with pytest.raises(StageFailed, match="SIGKILL"):
        done(config)
    taken: list[int] = []

    def watch(stage: Stage[Any]) -> store.Manifest:
        return launcher.run(stage, on_progress=lambda told: taken.append(told.done) if told.unit == "steps" else None)

    resumed = done(config, watch)
    assert min(taken) == 2
    assert all(resumed.weights[name].equal(weight) for name, weight in train().weights.items())


def test_weights_that_changed_after_training_are_not_tested(train: Train, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    stage = train().stage("evaluate_reward")
    changed = Stage("evaluate_reward", 0, stage.config, {"model": order.Artifact(folder, "digest")})
    with pytest.raises(CorruptArtifact, match="its files changed since they were recorded"):
        order.verified(changed)
