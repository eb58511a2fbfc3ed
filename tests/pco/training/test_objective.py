"""The training objective: every loss, from hidden states as from logits, with feedback mixed in."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from data import store
from pco import losses
from pco.config.train import DPO, IPO, SFT, Feedback, LoRA, PairwiseCringe, PythonLoss, SimPO, Train, Unlikelihood
from pco.execution import launcher
from pco.stage import Stage
from pco.training import user_loss
from pco.training.batches import Batch, Example, Rated, Step, collate, examples_of, micro_batches, rated_of, steps
from pco.training.objective import STATISTICS, PairPolicy, divisor, step_tokens
from tests import builders
from tests.pco.losses.trl_losses import dpo_trainer_loss

OWN = {"module": "hinge_loss", "folder": str(Path(__file__).parent)}
LOSSES = [
    PairwiseCringe(),
    PairwiseCringe(gate="off", detach_gate=True, alpha=0.5, k=3),
    PairwiseCringe(gate="hard", length_normalized_margin=True),
    SFT(),
    DPO(label_smoothing=0.1),
    IPO(),
    SimPO(gamma=1.0, label_smoothing=0.1),
    DPO(length_normalized=True, beta=5.0),
    PairwiseCringe(sft_weight=0.3),
    PairwiseCringe(sft_weight=0.3, detach_gate=True),
    DPO(sft_weight=0.3),
    SimPO(sft_weight=0.3),
    PythonLoss(**OWN, sft_weight=0.3),
    PythonLoss(**OWN, reference="start"),
    DPO(divide_by="tokens", sft_weight=0.3),
    IPO(length_normalized=True),
    Unlikelihood(alpha=0.7),
    PythonLoss(**OWN, divide_by="pairs"),
]


def named(loss: Any) -> str:
    changed = loss.model_dump(exclude_defaults=True, exclude={"folder", "module"})
    return "-".join([loss.kind, *(f"{name}={value}" for name, value in changed.items())])


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
    """Loss, statistics and gradients, summed over the batches, in float64 and padded rows (test_layout has others)."""
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float64)
    policy = PairPolicy(model, train.model_copy(update={"layout": "padded"}))
    results = [policy(batch) for batch in batches]
    loss = torch.stack([batch_loss for batch_loss, _ in results]).sum()
    loss.backward()
    gradients = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    return loss.detach(), torch.stack([statistics for _, statistics in results]).nansum(0), gradients


@pytest.mark.parametrize("loss", LOSSES, ids=named)
def test_the_fused_objective_equals_the_plain_one(
    tiny: Path, examples: list[Example], rated: list[Rated], loss: Any
) -> None:
    batch = collate(examples, rated, pad=0, seed=1)
    fused = _result(tiny, Train(loss=loss), [batch])
    again = collate(examples, rated, pad=0, seed=1)  # generators are used up
    plain = _result(tiny, Train(loss=loss, fused_head=False), [again])
    for from_hidden, from_logits in zip(fused, plain, strict=True):
        torch.testing.assert_close(from_hidden, from_logits)


@pytest.mark.parametrize("loss", LOSSES, ids=named)
@pytest.mark.parametrize("size", [1, 2, 8])
def test_any_split_of_pairs_and_feedback_into_micro_batches_gives_one_objective(
    tiny: Path, examples: list[Example], rated: list[Rated], loss: Any, size: int
) -> None:
    step = Step(0, 0, examples, rated)
    together = _result(tiny, Train(loss=loss), [collate(examples, rated, pad=0, seed="s:0")])
    batches = [b for rank in (0, 1) for b in micro_batches(step, rank=rank, world=2, size=size, pad=0, seed="s")]
    apart = _result(tiny, Train(loss=loss), batches)
    for whole, split in zip(together, apart, strict=True):
        torch.testing.assert_close(whole, split)


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


@pytest.mark.parametrize("loss", LOSSES, ids=named)
def test_a_placeholder_counts_for_nothing_whatever_the_loss(tiny: Path, loss: Any) -> None:
    value, statistics, gradients = _result(tiny, Train(loss=loss), [collate([], pad=0, seed=1)])
    assert value == 0
    assert not statistics.any()
    assert not gradients.any()


@pytest.mark.parametrize("kind", ["sigmoid", "sigmoid_norm"])
def test_an_sft_term_beside_dpo_equals_trls_in_value_and_gradient(
    tiny: Path, examples: list[Example], kind: str
) -> None:
    loss = DPO(beta=0.3, length_normalized=kind == "sigmoid_norm", sft_weight=0.7)
    batch = collate(examples, pad=0, seed=1)
    ours, _, our_gradients = _result(tiny, Train(loss=loss), [batch])
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float64)
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    mask = batch.labels != losses.IGNORE
    logps = logits.log_softmax(-1).gather(-1, batch.labels.clamp(min=0).unsqueeze(-1))[..., 0] * mask
    reference = batch.reference.flatten()
    theirs = dpo_trainer_loss({kind: 1.0, "sft": 0.7}, logps, mask, reference, beta=0.3)
    theirs.backward()
    their_gradients = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    # Theirs is the mean over pairs, ours the sum.
    torch.testing.assert_close(ours, len(examples) * theirs.detach())
    # The model's norms are float32 whatever the rest is.
    torch.testing.assert_close(our_gradients, len(examples) * their_gradients, rtol=1e-5, atol=1e-6)


def test_the_sft_term_is_a_sum_over_tokens_beside_pairwise_cringe_and_a_mean_beside_losses_of_a_pair(
    tiny: Path, examples: list[Example]
) -> None:
    def loss_and_ce(loss: Any) -> tuple[float, float]:
        value, statistics, _ = _result(tiny, Train(loss=loss), [collate(examples, pad=0, seed=1)])
        return float(value), float(statistics[STATISTICS.index("ce")])

    tokens = sum(len(example.chosen) for example in examples)
    for kind, share in ((PairwiseCringe, 1.0), (DPO, len(examples) / tokens), (SimPO, len(examples) / tokens)):
        without, ce = loss_and_ce(kind())
        with_sft, same_ce = loss_and_ce(kind(sft_weight=0.3))
        assert ce == pytest.approx(same_ce)
        assert with_sft - without == pytest.approx(0.3 * share * ce)


def test_every_epoch_spreads_all_feedback_evenly_over_its_steps(examples: list[Example], rated: list[Rated]) -> None:
    plan = list(steps(examples, rated, pairs_per_step=2, epochs=2, seed=0))
    assert [len(step.feedback) for step in plan] == [1, 1, 1] * 2
    for epoch in (0, 1):
        seen = {piece.rated_id for step in plan if step.epoch == epoch for piece in step.feedback}
        assert seen == {piece.rated_id for piece in rated}


def test_sums_over_tokens_are_divided_by_tokens_and_losses_of_a_pair_by_pairs(
    examples: list[Example], rated: list[Rated]
) -> None:
    step = Step(0, 0, examples, rated)
    chosen, rejected = sum(len(e.chosen) for e in examples), sum(len(e.rejected) for e in examples)
    all_tokens = chosen + rejected + sum(len(piece.completion) for piece in rated)
    by_tokens = [
        PairwiseCringe(),
        Unlikelihood(),
        PythonLoss(**OWN),
        DPO(divide_by="tokens"),
        SimPO(divide_by="tokens"),
    ]
    for loss in by_tokens:
        assert divisor(step, Train(loss=loss)) == step_tokens(step, Train(loss=loss)) == all_tokens
    assert divisor(step, Train(loss=SFT())) == all_tokens - rejected
    for loss in (DPO(), IPO(), SimPO(), DPO(length_normalized=True), PythonLoss(**OWN, divide_by="pairs")):
        assert divisor(step, Train(loss=loss)) == len(examples)
        assert step_tokens(step, Train(loss=loss)) == all_tokens
    for loss in (PairwiseCringe(), DPO()):
        assert divisor(Step(0, 0, [], []), Train(loss=loss)) == 1


def test_feedback_beside_a_mean_over_pairs_is_a_mean_over_its_own_tokens(
    tiny: Path, examples: list[Example], rated: list[Rated]
) -> None:
    def loss_and_feedback(loss: DPO, feedback: Feedback) -> tuple[float, float]:
        train, step = Train(loss=loss, feedback=feedback), Step(0, 0, examples, rated)
        batches = list(micro_batches(step, rank=0, world=1, size=2, pad=0, seed="s"))
        total, statistics, _ = _result(tiny, train, batches)
        return float(total) / divisor(step, train), float(statistics[STATISTICS.index("feedback_loss")])

    tokens = sum(len(piece.completion) for piece in rated)
    without, feedback = loss_and_feedback(DPO(), Feedback(weight=0.0))
    weighed, _ = loss_and_feedback(DPO(), Feedback(weight=0.7))
    assert weighed - without == pytest.approx(0.7 * feedback / tokens)
    all_tokens = step_tokens(Step(0, 0, examples, rated), Train())
    without, _ = loss_and_feedback(DPO(divide_by="tokens"), Feedback(weight=0.0))
    weighed, _ = loss_and_feedback(DPO(divide_by="tokens"), Feedback(weight=0.7))
    assert weighed - without == pytest.approx(0.7 * feedback / all_tokens)


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


@pytest.mark.parametrize(
    ("loss", "at_first"),
    [
        (DPO(beta=0.3), math.log(2)),
        pytest.param(DPO(beta=5.0, length_normalized=True), math.log(2), marks=pytest.mark.e2e),
        (PythonLoss(**OWN, reference="previous"), 1.0),
    ],
    ids=["dpo", "normalized", "python"],
)
def test_a_loss_of_log_ratios_starts_where_policy_and_reference_are_the_same_and_feedback_is_counted(
    tmp_path: Path, tiny: Path, tokenizer: Any, one_thread: None, loss: DPO | PythonLoss, at_first: float
) -> None:
    config = builders.config(
        tmp_path,
        tiny,
        train__precision="fp32",
        train__pairs_per_step=4,
        train__loss=loss.model_dump(),
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
    inputs |= user_loss.inputs(Stage("train", 1, config, {}))
    train = Stage("train", 1, config, inputs)
    launcher.run(train)
    log = store.read_table(train.folder, "train_log").to_pylist()
    divided_by_tokens = isinstance(loss, PythonLoss)
    mean = log[0]["loss"] * (log[0]["tokens"] / log[0]["pairs"] if divided_by_tokens else 1)
    assert mean == pytest.approx(at_first, rel=1e-5)
    assert [row["feedback"] for row in log] == [3, 3]
    assert all(row["feedback_loss"] > 0 for row in log)
    assert {row["gate"] for row in log} == {None}


def test_feedback_rows_become_rated_completions(tokenizer: Any) -> None:
    rows = _feedback_rows(tokenizer, 2)
    assert [piece.completion for piece in rated_of(rows)] == [row["token_ids"] for row in rows]
    assert len({piece.rated_id for piece in rated_of(rows + rows)}) == 4
