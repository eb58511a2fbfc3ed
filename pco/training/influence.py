"""How much a pair's own gradient step moved the log-probability of an answer, to first order.

TracIn (Pruthi et al., arXiv 2002.08484) at the policy that a training began from, with the training's own loss. In
memory are at most the policy, one gradient of the answer and one of a pair, and the activations of one pair.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from data.errors import BadInput
from pco import losses
from pco.config.trace import LAST_BLOCKS, Parameters
from pco.models.weights import block_of
from pco.training.batches import Example, Step, TokensPerPair, collate
from pco.training.layout import Reader
from pco.training.objective import PairPolicy, decoder_and_head

Weight = torch.nn.Parameter


@dataclass(frozen=True)
class Share:
    """A pair's part of an optimizer step: its summed loss is divided by `divisor`, and stepped along by `rate`."""

    example: Example
    epoch: int
    rate: float
    divisor: int
    per_pair: TokensPerPair


def shares(
    plan: Iterable[Step[Example]], *, rate: Callable[[Step[Example]], float], divisor: Callable[[Step[Example]], int]
) -> dict[str, list[Share]]:
    """By pair, its part in each step of a plan that it is in."""
    by_pair: dict[str, list[Share]] = defaultdict(list)
    for step in plan:
        per_pair = TokensPerPair.of(step.examples, step.feedback)
        for example in step.examples:
            by_pair[example.pair_id].append(Share(example, step.epoch, rate(step), divisor(step), per_pair))
    return by_pair


def chosen_parameters(model: Any, which: Parameters) -> list[Weight]:
    """The parameters that count, of those that are trained; the others need no gradient from now on.

    `head` is what turns hidden states into logits (where it is tied, the embedding), `last-blocks` that with the final
    norm and the last two blocks, `all` all.

    Raises BadInput where the model trains none of them: adapters lie in the blocks.
    """
    _, head = decoder_and_head(model)
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    ends = {id(weight) for weight in head.parameters()}
    embedding = {id(weight) for weight in model.get_input_embeddings().parameters()} - ends
    last = max((block for name, _ in named if (block := block_of(name)) is not None), default=-1)
    chosen = []
    for name, weight in named:
        block = block_of(name)
        is_late = block > last - LAST_BLOCKS if block is not None else id(weight) not in embedding
        if which == "all" or id(weight) in ends or (which == "last-blocks" and is_late):
            chosen.append(weight)
        else:
            weight.requires_grad_(False)
    if not chosen:
        raise BadInput(f"--parameters {which}: this training moved none of them. Take all, or last-blocks.")
    return chosen


def answer_logp(model: Any, answer: Example, pad: int) -> Tensor:
    """The log-probability of a whole completion, nats; `answer.chosen` is the completion."""
    decoder, head = decoder_and_head(model)
    batch = collate([answer], pad=pad, seed=0).to(next(model.parameters()).device)
    hidden, labels = Reader(decoder, model.config, "padded", longest=answer.longest).read(batch)
    rows = batch.chosen
    bias = getattr(head, "bias", None)
    return losses.fused_logps(hidden[rows], labels[rows], head.weight, head_bias=bias).sum()


def gradient(value: Tensor, parameters: Sequence[Weight]) -> list[Tensor | None]:
    """Of a number; None for a parameter that it does not depend on."""
    return list(torch.autograd.grad(value, list(parameters), allow_unused=True))


def influence(
    policy: PairPolicy,
    shares_of_pair: Sequence[Share],
    of_answer: Sequence[Tensor | None],
    parameters: Sequence[Weight],
    *,
    pad: int,
    seed: str,
) -> float:
    """By how much plain gradient descent on a pair's share of its steps raises the answer's log-probability, nats.

    Contrast tokens are those that the training draws; clipping and AdamW's scaling are left out.
    """
    total, device = 0.0, next(policy.parameters()).device
    for share in shares_of_pair:
        batch = collate([share.example], pad=pad, seed=f"{seed}:{share.epoch}")
        loss, _ = policy(replace(batch, per_pair=share.per_pair).to(device))
        total -= share.rate / share.divisor * _dot(of_answer, gradient(loss, parameters))
    return total


def _dot(answer: Sequence[Tensor | None], pair: Sequence[Tensor | None]) -> float:
    """The inner product, in float64 sums of float32 products of each parameter."""
    products = [
        float(torch.dot(left.flatten().float(), right.flatten().float()))
        for left, right in zip(answer, pair, strict=True)
        if left is not None and right is not None
    ]
    return sum(products)
