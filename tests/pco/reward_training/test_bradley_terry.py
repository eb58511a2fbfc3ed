"""The loss of a reward training against formulas written by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, BertConfig, LlamaConfig

from data import schemas
from data.errors import BadInput
from pco.config.reward_training import RewardTrain
from pco.losses import IGNORE
from pco.reward_training.bradley_terry import (
    BradleyTerry,
    Compared,
    collate,
    compared_of,
    length_weight,
    micro_batches,
    objective,
)
from pco.training.batches import Step

numbers = st.floats(-8, 8)


def tokens(*ids: int) -> np.ndarray:
    return np.array(ids, dtype=np.int32)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6))
def test_the_loss_is_minus_the_log_of_the_probability_that_the_chosen_text_wins(
    pairs: list[tuple[float, float]],
) -> None:
    differences, shifts = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    loss, statistics = objective(differences, shifts, torch.ones_like(shifts))
    by_hand = sum(math.log(1 + math.exp(-difference - shift)) for difference, shift in pairs)
    assert float(loss) == pytest.approx(by_hand)
    assert statistics.tolist() == pytest.approx(
        [by_hand, sum((difference > 0) + (difference == 0) / 2 for difference, _ in pairs), sum(d for d, _ in pairs)]
    )


def pair_row(chosen: int, rejected: int, margin: float | None = None, split: str = "train") -> dict[str, object]:
    texts = {"prompt_id": "p", "prompt": "p", "chosen": "c", "rejected": "r"}
    sides = {"chosen_token_ids": [1] * chosen, "rejected_token_ids": [2] * rejected}
    lengths = {"chosen_length": chosen, "rejected_length": rejected}
    return {"split": split, **texts, **sides, **lengths, "margin": margin}


def test_the_shift_is_the_length_term_less_the_margin_and_held_out_pairs_are_left_out() -> None:
    table = schemas.build("reward_pairs", [pair_row(8, 4, 0.5), pair_row(3, 6, 2.0), pair_row(1, 1, None, "heldout")])
    plain = compared_of(table, RewardTrain(), 0.7)
    assert [pair.shift for pair in plain] == [0, 0]
    assert [(len(pair.chosen), len(pair.rejected)) for pair in plain] == [(8, 4), (3, 6)]
    both = compared_of(table, RewardTrain(margin_scale=2.0, length_penalty=0.5), 0.7)
    assert [pair.shift for pair in both] == pytest.approx(
        [0.5 * 0.7 * math.log(2) - 1.0, -0.5 * 0.7 * math.log(2) - 4.0]
    )


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=30))
def test_the_length_weight_is_where_the_penalised_likelihood_is_greatest(differences: list[float]) -> None:
    values = np.array(differences)

    def cost(weight: float) -> float:
        return weight**2 / 2 + float(np.sum(np.logaddexp(0, -weight * values)))

    best = length_weight(values)
    assert cost(best) <= min(cost(best + step) for step in (-0.01, 0.01))
    assert length_weight(-values) == pytest.approx(-best, abs=1e-9)


def test_where_length_tells_nothing_its_weight_is_nothing() -> None:
    assert length_weight(np.array([1.0, -1.0, 0.0])) == pytest.approx(0, abs=1e-9)


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=9), world=st.integers(1, 3), size=st.integers(1, 4))
def test_every_pair_of_a_step_is_in_one_micro_batch_of_one_rank_and_all_ranks_have_as_many(
    sizes: list[int], world: int, size: int
) -> None:
    pairs = [Compared(tokens(*[i + 1] * n), tokens(*[i + 1] * (10 - n)), float(i + 1)) for i, n in enumerate(sizes)]
    shares = [
        list(micro_batches(Step(0, 0, pairs, []), rank=rank, world=world, size=size, pad=0)) for rank in range(world)
    ]
    assert len({len(share) for share in shares}) == 1
    shifts = [batch.shift[batch.weight > 0].tolist() for share in shares for batch in share]
    assert sorted(sum(shifts, [])) == [float(i + 1) for i in range(len(pairs))]
    for batch in (batch for share in shares for batch in share):
        assert len(batch.shift) <= size
        assert ((batch.input_ids != 0) <= batch.attention_mask.bool()).all()
        chosen, rejected = batch.input_ids.chunk(2)
        assert (chosen[:, 0] == rejected[:, 0]).all()


def test_nothing_becomes_a_placeholder_without_weight() -> None:
    batch = collate([], pad=7)
    assert batch.input_ids.tolist() == [[7], [7]]
    assert batch.weight.tolist() == [0]
    loss, statistics = objective(torch.tensor([3.0]), batch.shift, batch.weight)
    assert (float(loss), statistics.tolist()) == (0, [0, 0, 0])


# The layout of pairs.

PAD = 9
texts = st.lists(st.sampled_from([1, 2, PAD]), min_size=1, max_size=6)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4))
def test_the_reward_of_a_text_is_read_at_the_same_token_in_both_layouts(pairs: list[tuple[list[int], ...]]) -> None:
    batch = collate([Compared(tokens(*chosen), tokens(*rejected), 0.0) for chosen, rejected in pairs], PAD)
    for row in range(2 * len(pairs)):
        (at,) = (batch.labels[row] != IGNORE).nonzero().flatten().tolist()
        source = int(batch.shared.source[row])
        assert batch.shared.input_ids.flatten()[source] == batch.input_ids[row, at]
        assert batch.shared.position_ids.flatten()[source] == at
        others = (batch.input_ids[row] != PAD).nonzero().flatten().tolist()
        assert at == (others[-1] if others else 0)


def compared(count: int) -> list[Compared]:
    """Pairs that share their beginning; some texts end in the padding token, one begins with the other."""
    draw = np.random.default_rng(0)
    pairs = []
    for i in range(count):
        prompt = draw.integers(10, 60, 12).tolist()
        chosen, rejected = (draw.integers(10, 60, size).tolist() for size in (3 + i, 5))
        pairs.append(Compared(tokens(*prompt, *chosen, PAD), tokens(*prompt, *rejected), 0.1 * i))
    return [*pairs, Compared(tokens(20, 21, 22), tokens(20, 21, 22, 23), 0.0)]


def classifier() -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=64, **sizes, num_labels=1, pad_token_id=PAD)
    return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)


@pytest.mark.parametrize("size", [1, 2, 8])
def test_shared_prompts_give_the_loss_and_gradients_of_padded_rows_in_any_split(size: int) -> None:
    def of(layout: str, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        model = classifier()
        learner = BradleyTerry(model, RewardTrain(layout=layout))  # type: ignore[arg-type]
        batches = micro_batches(Step(0, 0, compared(5), []), rank=0, world=1, size=size, pad=PAD)
        results = [learner(batch) for batch in batches]
        loss = torch.stack([batch_loss for batch_loss, _ in results]).sum()
        loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        return loss.detach(), torch.stack([statistics for _, statistics in results]).sum(0), gradients

    for ours, theirs in zip(of("shared", size), of("padded", 8), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_placeholder_has_no_loss_with_shared_prompts_either() -> None:
    loss, statistics = BradleyTerry(classifier(), RewardTrain(layout="shared"))(collate([], PAD))  # type: ignore[arg-type]
    assert loss == 0
    assert not statistics.any()


def test_an_encoder_reads_both_texts_whole_and_refuses_a_shared_prompt() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = AutoModelForSequenceClassification.from_config(BertConfig(vocab_size=64, **sizes, num_labels=1)).eval()
    batch = collate(compared(3), PAD)
    padded, auto = (BradleyTerry(model, RewardTrain(layout=layout))(batch) for layout in ("padded", "auto"))
    assert torch.equal(padded[0], auto[0])
    with pytest.raises(BadInput, match=r"train\.layout: shared: BertForSequenceClassification"):
        BradleyTerry(model, RewardTrain(layout="shared"))
