"""The training objective: every loss, from hidden states as from logits, with feedback mixed in."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from data import store
from pco.config.train import DPO, IPO, SFT, Feedback, LoRA, PairwiseCringe, Train
from pco.execution import launcher
from pco.stage import Stage
from pco.training.batches import Batch, Example, Rated, Step, collate, examples_of, micro_batches, rated_of, steps
from pco.training.objective import STATISTICS, PairPolicy, step_tokens
from tests import builders

LOSSES = [
    PairwiseCringe(),
    PairwiseCringe(gate="off", detach_gate=True, alpha=0.5, k=3),
    PairwiseCringe(gate="hard", length_normalized_margin=True),
    SFT(),
    DPO(label_smoothing=0.1),
    IPO(),
]


@pytest.fixture(scope="module")
def examples(tokenizer: Any) -> list[Example]:
    pairs = examples_of(builders.pair_rows(tokenizer, 5))
    return [replace(pair, reference=(-20.0 - i, -30.0)) for i, pair in enumerate(pairs)]


@pytest.fixture(scope="module")
def rated(examples: list[Example]) -> list[Rated]:
    return [
        Rated(str(i), pair.prompt, pair.chosen if i % 2 else pair.rejected, bool(i % 2))
        for i, pair in enumerate(examples[:3])
    ]


def _result(tiny: Path, train: Train, batches: list[Batch]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, statistics and gradients, summed over the batches, in float64."""
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float64)
    policy = PairPolicy(model, train)
    results = [policy(batch) for batch in batches]
    loss = torch.stack([one[0] for one in results]).sum()
    loss.backward()
    gradients = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    return loss.detach(), torch.stack([one[1] for one in results]).nansum(0), gradients


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{loss.kind}-{getattr(loss, 'gate', '')}")
def test_the_fused_objective_equals_the_plain_one(
    tiny: Path, examples: list[Example], rated: list[Rated], loss: Any
) -> None:
    batch = collate(examples, rated, pad=0, seed=1)
    fused = _result(tiny, Train(loss=loss), [batch])
    again = collate(examples, rated, pad=0, seed=1)  # generators are used up
    plain = _result(tiny, Train(loss=loss, fused_head=False), [again])
    for one, other in zip(fused, plain, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{loss.kind}-{getattr(loss, 'gate', '')}")
@pytest.mark.parametrize("size", [1, 2, 8])
def test_any_split_of_pairs_and_feedback_into_micro_batches_gives_one_objective(
    tiny: Path, examples: list[Example], rated: list[Rated], loss: Any, size: int
) -> None:
    step = Step(0, 0, examples, rated)
    together = _result(tiny, Train(loss=loss), [collate(examples, rated, pad=0, seed="s:0")])
    batches = [b for rank in (0, 1) for b in micro_batches(step, rank=rank, world=2, size=size, pad=0, seed="s")]
    apart = _result(tiny, Train(loss=loss), batches)
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other)


def test_feedback_counts_by_its_weight(tiny: Path, examples: list[Example], rated: list[Rated]) -> None:
    def loss(weight: float) -> tuple[float, float]:
        train = Train(feedback=Feedback(weight=weight))
        total, statistics, _ = _result(tiny, train, [collate(examples, rated, pad=0, seed=1)])
        return float(total), float(statistics[STATISTICS.index("feedback_loss")])

    (without, feedback), (once, _), (twice, _) = loss(0.0), loss(1.0), loss(2.0)
    assert feedback > 0
    assert once == pytest.approx(without + feedback)
    assert twice == pytest.approx(without + 2 * feedback)


def test_a_batch_of_nothing_has_a_loss_and_gradients_of_zero(tiny: Path) -> None:
    loss, statistics, gradients = _result(tiny, Train(), [collate([], pad=0, seed=1)])
    assert loss == 0
    assert not statistics.any()
    assert not gradients.any()


def test_every_epoch_spreads_all_feedback_evenly_over_its_steps(examples: list[Example], rated: list[Rated]) -> None:
    plan = list(steps(examples, rated, pairs_per_step=2, epochs=2, seed=0))
    assert [len(step.feedback) for step in plan] == [1, 1, 1] * 2
    for epoch in (0, 1):
        seen = {one.rated_id for step in plan if step.epoch == epoch for one in step.feedback}
        assert seen == {one.rated_id for one in rated}


def test_the_divisor_counts_the_tokens_that_the_loss_sums_over(examples: list[Example], rated: list[Rated]) -> None:
    step = Step(0, 0, examples, rated)
    chosen, rejected = sum(len(e.chosen) for e in examples), sum(len(e.rejected) for e in examples)
    feedback = sum(len(one.completion) for one in rated)
    assert step_tokens(step, Train()) == chosen + rejected + feedback
    assert step_tokens(step, Train(loss=SFT())) == chosen + feedback
    assert step_tokens(Step(0, 0, [], []), Train()) == 1


def _feedback_rows(tokenizer: Any, count: int) -> list[builders.Row]:
    pairs = builders.pair_rows(tokenizer, count, seed=3)
    return [
        {
            "prompt_id": pair["prompt_id"],
            "prompt": pair["prompt"],
            "completion": pair["chosen"],
            "good": True,
            "prompt_token_ids": pair["prompt_token_ids"],
            "token_ids": pair["chosen_token_ids"],
        }
        for pair in pairs
    ]


def test_dpo_starts_at_log_2_since_policy_and_reference_are_one_and_feedback_is_counted(
    tmp_path: Path, tiny: Path, tokenizer: Any, one_thread: None
) -> None:
    config = builders.config(
        tmp_path,
        tiny,
        train__precision="fp32",
        train__pairs_per_step=4,
        train__loss={"kind": "dpo", "beta": 0.3},
        train__feedback={"weight": 0.0},
        train__lora=LoRA(r=2).model_dump(),
    )
    policy = builders.model(tiny)
    pairs = builders.finished(tmp_path / "pairs", {"pairs": builders.pair_rows(tokenizer, 8)})
    rows = _feedback_rows(tokenizer, 6)
    prompts = builders.finished(tmp_path / "prompts", {"feedback": rows}, name="prepare", fingerprint="e" * 16)
    refer = Stage("refer", 1, config, {"policy": policy, "pairs": pairs})
    assert launcher.run(refer).rows_out == 8
    inputs = {"policy": policy, "pairs": pairs, "prompts": prompts, "reference": builders.result(refer)}
    train = Stage("train", 1, config, inputs)
    launcher.run(train)
    log = store.read_table(train.folder, "train_log").to_pylist()
    assert log[0]["loss"] * log[0]["tokens"] / log[0]["pairs"] == pytest.approx(math.log(2), rel=1e-5)
    assert [row["feedback"] for row in log] == [3, 3]
    assert all(row["feedback_loss"] > 0 for row in log)
    assert {row["gate"] for row in log} == {None}


def test_feedback_rows_become_rated_completions(tokenizer: Any) -> None:
    rows = _feedback_rows(tokenizer, 2)
    assert [one.completion for one in rated_of(rows)] == [row["token_ids"] for row in rows]
    assert len({one.rated_id for one in rated_of(rows + rows)}) == 4
