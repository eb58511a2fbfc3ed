"""Pairs that share their prompt in one row are to the objective what they are in two."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen3NextConfig,
)

from data.errors import BadInput
from pco.config.train import DPO, SFT, PairwiseCringe, Train
from pco.losses import IGNORE
from pco.training.batches import PADDING, Example, Rated, Step, collate, examples_of, micro_batches
from pco.training.layout import Reader, why_not
from pco.training.objective import PairPolicy, decoder_and_head
from tests import builders
from tests.pco.training.test_batches import example_lists, rated_lists

LOSSES = [PairwiseCringe(), PairwiseCringe(gate="hard", sft_weight=0.3), DPO(label_smoothing=0.1)]
Result = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def examples(tokenizer: Any) -> list[Example]:
    pairs = examples_of(builders.pair_rows(tokenizer, 5))
    return [replace(pair, reference=(-20.0 - i, -30.0)) for i, pair in enumerate(pairs)]


@pytest.fixture(scope="module")
def rated(examples: list[Example]) -> list[Rated]:
    return [Rated(str(i), pair.prompt, pair.chosen, bool(i % 2)) for i, pair in enumerate(examples[:3])]


# Rows.


@given(examples=example_lists(), feedback=rated_lists())
def test_every_label_is_predicted_where_its_sequence_alone_would_have_it(
    examples: list[Example], feedback: list[Rated]
) -> None:
    batch = collate(examples, feedback, pad=0, seed=0)
    shared = batch.shared
    assert shared is not None
    ids, positions = shared.input_ids.flatten(), shared.position_ids.flatten()
    for row in range(len(batch.labels)):
        counts = batch.labels[row] != IGNORE
        gathered = shared.labels[row] != IGNORE
        assert shared.labels[row][gathered].tolist() == batch.labels[row][counts].tolist()
        source = shared.source[row][gathered]
        assert ids[source].tolist() == batch.input_ids[row][counts].tolist()
        assert positions[source].tolist() == counts.nonzero().flatten().tolist()


@given(examples=example_lists())
def test_a_token_sees_its_own_sequence_up_to_itself_and_nothing_else(examples: list[Example]) -> None:
    shared = collate(examples, pad=0, seed=0).shared
    assert shared is not None
    mask = shared.mask(torch.float32)[:, 0]
    assert (mask.diagonal(dim1=-2, dim2=-1) == 0).all()  # no row of scores is empty
    for row, pair in enumerate(examples):
        prompt, chosen = len(pair.prompt), len(pair.chosen)
        for query in range(int((shared.parts[row] != PADDING).sum())):
            seen = (mask[row, query] == 0).nonzero().flatten().tolist()
            if query < prompt + chosen:
                assert seen == list(range(query + 1))
            else:
                assert seen == [*range(prompt), *range(prompt + chosen, query + 1)]


# The objective.


def result(model: Any, train: Train, batches: list[Any]) -> Result:
    """Loss, statistics and gradients, summed over the batches."""
    policy = PairPolicy(model, train)
    results = [policy(batch) for batch in batches]
    loss = torch.stack([batch_loss for batch_loss, _ in results]).sum()
    loss.backward()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return loss.detach(), torch.stack([statistics for _, statistics in results]).nansum(0), gradients


def same(one: Result, other: Result, tolerance: float) -> None:
    """The difference of each, as a share of its size; norms and positions are float32 whatever the model is."""
    for ours, theirs in zip(one, other, strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("loss", LOSSES, ids=["cringe", "hard", "dpo"])
def test_shared_prompts_give_the_values_and_gradients_of_padded_rows(
    tiny: Path, examples: list[Example], rated: list[Rated], loss: Any, attention: str
) -> None:
    def of(layout: str, dtype: torch.dtype) -> Result:
        model = AutoModelForCausalLM.from_pretrained(tiny, dtype=dtype, attn_implementation=attention)
        return result(model, Train(loss=loss, layout=layout), [collate(examples, rated, pad=0, seed=1)])

    same(of("shared", torch.float64), of("padded", torch.float64), 1e-5)
    same(of("shared", torch.float32), of("padded", torch.float32), 1e-4)


@pytest.mark.parametrize("size", [1, 2])
def test_any_split_into_micro_batches_gives_one_objective_with_shared_prompts_too(
    tiny: Path, examples: list[Example], rated: list[Rated], size: int
) -> None:
    def of(layout: str, batches: list[Any]) -> Result:
        model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float64)
        return result(model, Train(layout=layout), batches)

    step = Step(0, 0, examples, rated)
    batches = [b for rank in (0, 1) for b in micro_batches(step, rank=rank, world=2, size=size, pad=0, seed="s")]
    same(of("shared", batches), of("padded", [collate(examples, rated, pad=0, seed="s:0")]), 1e-5)


def test_the_contrast_tokens_are_those_of_padded_rows(tiny: Path, examples: list[Example]) -> None:
    drawn = []
    for layout in ("padded", "shared"):
        model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
        policy, batch = PairPolicy(model, Train(layout=layout)), collate(examples, pad=0, seed=1)
        policy(batch)
        drawn.append([torch.rand(1, generator=generator).item() for generator in batch.generators])
    assert drawn[0] == drawn[1]  # and as many numbers were drawn


def test_sft_and_a_placeholder_are_read_as_ever(tiny: Path, examples: list[Example]) -> None:
    def of(layout: str, loss: Any, pairs: list[Example]) -> Result:
        model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float64)
        return result(model, Train(loss=loss, layout=layout), [collate(pairs, pad=0, seed=1)])

    same(of("shared", SFT(), examples), of("padded", SFT(), examples), 0.0)
    value, statistics, gradients = of("shared", PairwiseCringe(), [])
    assert value == 0
    assert not statistics.any()
    assert not gradients.any()


# Which layout.


def reader_of(config: Any, layout: str, longest: int = 64) -> Reader:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    return Reader(decoder_and_head(model)[0], model.config, layout, longest=longest)  # type: ignore[arg-type]


SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = {**SIZES, "intermediate_size": 64, "num_key_value_heads": 1}


def pair(prompt: int, completion: int) -> Example:
    return Example("p", [i % 60 for i in range(prompt)], [7] * completion, [i % 50 for i in range(completion)])


def test_auto_shares_a_prompt_where_that_spares_more_than_the_larger_mask_costs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reader = reader_of(LlamaConfig(**LLAMA), "auto")
    shares = {}
    for prompt, completion in ((40, 4), (1, 200)):
        _, labels = reader.read(collate([pair(prompt, completion)], pad=0, seed=0))
        shares[prompt] = labels.shape[1] == completion
    assert shares == {40: True, 1: False}
    assert capsys.readouterr().out.count("layout: shared prompts") == 1


def test_nothing_is_decided_by_a_batch_that_cannot_tell(capsys: pytest.CaptureFixture[str]) -> None:
    reader = reader_of(LlamaConfig(**LLAMA), "shared")
    _, labels = reader.read(collate([pair(8, 1)], pad=0, seed=0))
    assert labels.shape[1] == 9  # read as padded rows
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "config",
    [GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2), GPTNeoXConfig(**SIZES, intermediate_size=64)],
    ids=["gpt2", "neox"],
)
def test_other_families_share_prompts_too(config: Any) -> None:
    reader = reader_of(config, "shared")
    _, labels = reader.read(collate([pair(20, 8)], pad=0, seed=0))
    assert labels.shape[1] == 8


def mamba() -> Any:
    return MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4)


def hybrid() -> Any:
    """A recurrence in one layer and attention in the next: its code takes mask and positions."""
    return Qwen3NextConfig(
        **LLAMA,
        head_dim=16,
        layer_types=["linear_attention", "full_attention"],
        linear_num_value_heads=2,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=0,
        num_experts_per_tok=1,
    )


def windowed() -> Any:
    return MistralConfig(**LLAMA, sliding_window=32)


@pytest.mark.parametrize(
    ("config", "reason"),
    [(mamba, ""), (hybrid, "differ by"), (windowed, "sliding_window is 32")],
    ids=["mamba", "hybrid", "windowed"],
)
def test_a_model_that_cannot_share_prompts_has_padded_rows_and_says_why(
    config: Callable[[], Any], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    reader = reader_of(config(), "auto")
    for _ in range(2):
        _, labels = reader.read(collate([pair(20, 8)], pad=0, seed=0))
        assert labels.shape[1] == 28
    said = capsys.readouterr().out
    assert said.count("layout: padded rows: ") == 1
    assert reason in said

    with pytest.raises(BadInput, match=r"train\.layout: shared"):
        reader_of(config(), "shared").read(collate([pair(20, 8)], pad=0, seed=0))


def test_a_window_that_no_sequence_leaves_does_no_harm() -> None:
    model = AutoModelForCausalLM.from_config(windowed())
    assert why_not(decoder_and_head(model)[0], model.config, 32) is None


def test_attention_that_takes_no_mask_of_its_caller_is_named() -> None:
    model = AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA))
    decoder = decoder_and_head(model)[0]
    assert why_not(decoder, model.config, 32) is None
    model.config._attn_implementation = "flash_attention_2"
    assert "flash_attention_2" in str(why_not(decoder, model.config, 32))
