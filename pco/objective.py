"""The training objective on top of a Hugging Face causal language model."""

from typing import Any

import torch
from torch import Tensor

from pco import losses
from pco.batches import Batch, Step
from pco.config import SFT, PairwiseCringe

STATISTICS = ("loss", "margin", "gate", "ce", "cringe")


class PairPolicy(torch.nn.Module):
    """A policy whose forward pass gives the loss of a micro-batch of pairs.

    The head module computes the loss itself instead of the logits: so no (tokens x vocabulary) tensor arises, and
    ZeRO-3, which gathers a module's weights around its forward and backward, finds the head where it looks for it.
    """

    def __init__(self, model: Any, loss: PairwiseCringe | SFT, *, fused: bool = True) -> None:
        super().__init__()
        self.model = model
        self._loss = loss
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        head = plain.get_output_embeddings()
        # In a closure and a tuple, lest torch registers what the model holds already.
        self._parts = (plain.get_decoder(), head)
        as_logits = head.forward

        def forward(hidden: Tensor, batch: Batch) -> tuple[Tensor, ...]:
            if fused:
                return _fused(loss, hidden, batch, head.weight, getattr(head, "bias", None))
            return _plain(loss, as_logits(hidden), batch)

        head.forward = forward

    def forward(self, batch: Batch) -> tuple[Tensor, ...]:
        """Per pair (B,): the quantities named in STATISTICS; only the loss carries gradients to rely on."""
        decoder, head = self._parts
        # SFT never looks at the rejected rows.
        rows = slice(None) if isinstance(self._loss, PairwiseCringe) else slice(len(batch.input_ids) // 2)
        output = decoder(input_ids=batch.input_ids[rows], attention_mask=batch.attention_mask[rows], use_cache=False)
        statistics: tuple[Tensor, ...] = head(output.last_hidden_state, batch)
        return statistics


def step_tokens(step: Step, loss: PairwiseCringe | SFT) -> int:
    """The completion tokens of a whole optimizer step that its loss is divided by; at least 1."""
    chosen = sum(len(example.chosen) for example in step.examples)
    rejected = sum(len(example.rejected) for example in step.examples)
    return max(1, chosen + rejected if isinstance(loss, PairwiseCringe) else chosen)


def _keywords(loss: PairwiseCringe) -> dict[str, Any]:
    return {
        "alpha": loss.alpha,
        "b": loss.b,
        "tau": loss.tau,
        "k": loss.k,
        "gate_kind": loss.gate,
        "detach_gate": loss.detach_gate,
        "length_normalized_margin": loss.length_normalized_margin,
    }


def _fused(
    loss: PairwiseCringe | SFT, hidden: Tensor, batch: Batch, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, ...]:
    pairs = len(batch.labels) // 2
    if isinstance(loss, SFT):
        return _without_pairs(-losses.fused_logps(hidden, batch.labels[:pairs], weight, head_bias=bias))
    result = losses.fused_pairwise_cringe(
        hidden[:pairs],
        batch.labels[:pairs],
        hidden[pairs:],
        batch.labels[pairs:],
        weight,
        head_bias=bias,
        generator=batch.generators,
        **_keywords(loss),
    )
    return _statistics(result)


def _plain(loss: PairwiseCringe | SFT, logits: Tensor, batch: Batch) -> tuple[Tensor, ...]:
    pairs = len(batch.labels) // 2
    if isinstance(loss, SFT):
        return _without_pairs(losses.sft(logits, batch.labels[:pairs]))
    result = losses.pairwise_cringe(
        logits[:pairs],
        batch.labels[:pairs],
        logits[pairs:],
        batch.labels[pairs:],
        generator=batch.generators,
        **_keywords(loss),
    )
    return _statistics(result)


def _statistics(result: losses.PairwiseCringe) -> tuple[Tensor, ...]:
    return result.loss, result.margin, result.gate, result.ce, result.cringe


def _without_pairs(ce: Tensor) -> tuple[Tensor, ...]:
    """Statistics of a loss without a margin, gate or Cringe term: those are not numbers."""
    absent = torch.full_like(ce, torch.nan)
    return ce, absent, absent, ce.detach(), absent
