"""Stages with the real engine by workers: the tables of one process, to the byte."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pco.config.reward_training import RewardTraining
from pco.execution import launcher
from pco.reward_training import evaluate_reward
from pco.specs import StageName
from pco.stage import Artifact, Stage
from pco.stages import refer
from tests import builders, tiny_model, tiny_reward
from tests.pco.reward_training.conftest import training_config
from tests.points import Points

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

PROMPTS = ["the river", "a small town", "the old bridge", "her garden lights"]
SETTINGS = {
    "policy__prompt_format": "raw",
    "engine__dtype": "float32",
    "engine__kv_cache_gib": 0.1,
    "train__precision": "fp32",
    "generate__n": 2,
    "generate__temperature": 1.5,
    "generate__max_tokens": 16,
    "generate__shard_size": 1,
}


@pytest.fixture
def one_thread_here() -> Iterator[None]:
    """This process makes what workers are held to: to start another one for it would import all libraries again."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread", "one_thread_here")
def test_evaluate_and_refer_by_two_workers_write_the_tables_of_one_process_though_one_is_killed(
    tmp_path: Path, tiny: Path, tokenizer: Any, points: Points
) -> None:
    rows = [
        *(builders.prompt_row(text, "heldout") for text in PROMPTS),
        builders.prompt_row(tiny_model.repetitive_text(901), "text"),
    ]
    prompts = builders.finished(tmp_path / "prompts", {"prompts": rows}, "prepare")
    pairs = builders.finished(tmp_path / "pairs", {"pairs": builders.pair_rows(tokenizer, 257)}, "pair")
    policy = builders.model(tiny)

    def stage(name: StageName, inputs: dict[str, Artifact], **executor: Any) -> Stage:
        config = builders.config(tmp_path / executor["kind"], tiny, **SETTINGS, executor=executor)
        return builders.stage(name, config, inputs)

    points.kill("pool/runs/test/round-01/evaluation/candidates-00001.parquet", "self")
    inputs = {"policy": policy, "prompts": prompts}
    expected = launcher.run(stage("evaluate", inputs, kind="local")).parts
    assert launcher.run(stage("evaluate", inputs, kind="pool", workers=2)).parts == expected
    assert not list(points.folder.glob("*.self")), "none was killed"
    inputs = {"policy": policy, "pairs": pairs}
    expected = refer.run(stage("refer", inputs, kind="local")).parts
    assert launcher.run(stage("refer", inputs, kind="pool", workers=2)).parts == expected


@pytest.mark.usefixtures("one_thread", "one_thread_here")
def test_a_reward_model_is_tested_by_two_workers_as_by_one_process(tmp_path: Path, tokenizer: Any) -> None:
    model = tiny_reward.make(tmp_path / "reward", tokenizer)
    rows = [
        {
            **{name: row[name] for name in ("prompt_id", "prompt", "chosen", "rejected")},
            **{"split": "heldout", "chosen_length": 1, "rejected_length": 2, "margin": None, "messages": None},
            **dict.fromkeys(("chosen_token_ids", "rejected_token_ids"), row["chosen_token_ids"]),
        }
        for row in builders.pair_rows(tokenizer, 300)
    ]
    pairs = builders.finished(tmp_path / "pairs", {"reward_pairs": rows})
    inputs = {"model": builders.model(model), "pairs": pairs}

    def stage(**executor: Any) -> Stage[RewardTraining]:
        config = training_config(tmp_path / executor["kind"], model, executor=executor)
        return Stage("evaluate_reward", 0, config, inputs)

    expected = evaluate_reward.run(stage(kind="local")).parts
    assert launcher.run(stage(kind="pool", workers=2)).parts == expected
