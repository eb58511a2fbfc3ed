"""The influence of a pair is the change that its gradient step makes, to first order."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from data.errors import BadInput
from pco.config.train import DPO, SFT, LoRA, PairwiseCringe, SimPO, Train, Unlikelihood
from pco.training import influence, loop
from pco.training.batches import Example, collate, examples_of, steps
from pco.training.objective import PairPolicy, divisor
from tests import builders

SEED = "0:1"
LOSSES = [
    PairwiseCringe(),
    PairwiseCringe(gate="hard", k=3),
    PairwiseCringe(sft_weight=0.3, tau=1.0),
    SFT(),
    DPO(sft_weight=0.3),
    SimPO(gamma=1.0),
    Unlikelihood(),
]


@pytest.fixture(scope="module")
def examples(tokenizer: Any) -> list[Example]:
    pairs = examples_of(builders.pair_rows(tokenizer, 6))
    return [replace(pair, reference=(-20.0 - i, -30.0)) for i, pair in enumerate(pairs)]


def loaded(tiny: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float64).eval()


def predicted(model: Any, train: Train, examples: list[Example], answer: Example, which: Any = "all") -> list[float]:
    """The influence of each pair, its steps those of a plan of one epoch."""
    plan = list(steps(examples, pairs_per_step=train.pairs_per_step, epochs=train.epochs, seed=SEED))
    by_pair = influence.shares(plan, rate=lambda _: train.learning_rate, divisor=lambda step: divisor(step, train))
    parameters = influence.chosen_parameters(model, which)
    of_answer = influence.gradient(influence.answer_logp(model, answer, 0), parameters)
    policy = PairPolicy(model, train)
    return [
        influence.influence(policy, by_pair[pair.pair_id], of_answer, parameters, pad=0, seed=SEED) for pair in examples
    ]


def actual(model: Any, train: Train, pairs: list[Example], answer: Example, which: Any, size: float) -> float:
    """The change of the answer's log-probability by a step of plain SGD of that size, as a central difference."""
    parameters = influence.chosen_parameters(model, which)
    (step,) = steps(pairs, pairs_per_step=len(pairs), epochs=1, seed=SEED)
    loss, _ = PairPolicy(model, train)(collate(pairs, pad=0, seed=f"{SEED}:0"))
    gradients = influence.gradient(loss / divisor(step, train), parameters)

    @torch.no_grad()
    def logp_after(size: float) -> float:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.sub_(size * gradient)
        return float(influence.answer_logp(model, answer, 0))

    ahead = logp_after(size)
    return (ahead - logp_after(-2 * size)) / 2


@settings(max_examples=8)
@given(
    loss=st.sampled_from(LOSSES),
    which=st.sampled_from(["all", "last-blocks", "head"]),
    layout=st.sampled_from(["padded", "shared"]),
)
def test_the_predicted_change_is_that_of_a_small_step_of_plain_sgd(
    tiny: Path, examples: list[Example], loss: Any, which: Any, layout: Any
) -> None:
    pairs, other = examples[:4], examples[5]
    answer = Example("answer", other.prompt, other.rejected, [])
    train = Train(loss=loss, layout=layout, learning_rate=1e-5, pairs_per_step=4)
    total = sum(predicted(loaded(tiny), train, pairs, answer, which))
    size = 0.02 / abs(total) * train.learning_rate  # large enough to be seen beside the model's own float32 sums
    change = actual(loaded(tiny), train, pairs, answer, which, size)
    assert change == pytest.approx(total * size / train.learning_rate, rel=0.03)


def test_a_pair_that_teaches_the_answer_raises_it_and_its_opposite_lowers_it(
    tiny: Path, examples: list[Example]
) -> None:
    pair = examples[0]
    answer = Example("answer", pair.prompt, pair.rejected, [])
    turned = replace(pair, pair_id="turned", chosen=pair.rejected, rejected=pair.chosen)
    train = Train(loss=DPO(), pairs_per_step=2)
    harmed, helped = predicted(loaded(tiny), train, [pair, turned], answer)
    assert harmed < 0 < helped


def test_a_pair_has_its_share_of_every_step_that_it_is_in(tiny: Path, examples: list[Example]) -> None:
    train = Train(loss=SFT(), epochs=3, pairs_per_step=4)
    plan = list(steps(examples, pairs_per_step=4, epochs=3, seed=SEED))
    by_pair = influence.shares(
        plan,
        rate=lambda step: loop.rate(step.number, len(plan), train),
        divisor=lambda step: divisor(step, train),
    )
    assert {pair: [share.epoch for share in shares] for pair, shares in by_pair.items()} == {
        pair.pair_id: [0, 1, 2] for pair in examples
    }
    (first, *_) = by_pair[plan[0].examples[0].pair_id]
    assert first.divisor == divisor(plan[0], train)


def test_parameters_that_a_training_with_adapters_does_not_move_are_refused(tiny: Path) -> None:
    train = Train(precision="fp32", lora=LoRA(r=2))
    adapted = loop.prepared(AutoModelForCausalLM.from_pretrained(tiny), train, task="CAUSAL_LM")
    assert influence.chosen_parameters(adapted, "last-blocks")
    with pytest.raises(BadInput, match="--parameters head"):
        influence.chosen_parameters(adapted, "head")
