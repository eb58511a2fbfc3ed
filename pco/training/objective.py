"""The training objective on top of a Hugging Face causal language model."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pco import losses
from pco.config.train import DPO, IPO, SFT, Feedback, PairwiseCringe, Train
from pco.training.batches import Batch, Step

STATISTICS = ("loss", "margin", "gate", "ce", "cringe", "feedback_loss")


class PairPolicy(torch.nn.Module):
    """A policy whose forward pass gives the loss of a micro-batch.

    The head module computes the loss itself instead of the logits: so no (tokens x vocabulary) tensor arises, and
    ZeRO-3, which gathers a module's weights around its forward and backward, finds the head where it looks for it.
    """

    def __init__(self, model: Any, train: Train) -> None:
        super().__init__()
        self.model = model
        self._train = train
        self._parts = decoder_and_head(model)  # in a tuple, lest torch registers what the model holds already
        head = self._parts[1]
        as_logits = head.forward

        def forward(hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
            scorer = Fused(hidden, batch, head) if train.fused_head else Plain(as_logits(hidden), batch)
            return _objective(train, scorer, batch)

        head.forward = forward

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss, summed over the micro-batch, and detached sums (6,) of what STATISTICS names, float64.

        A statistic that the loss does not have is NaN.
        """
        decoder, head = self._parts
        # SFT never looks at the rejected rows, which are the last.
        rows = slice(0, batch.rated.stop) if isinstance(self._train.loss, SFT) else slice(None)
        output = decoder(input_ids=batch.input_ids[rows], attention_mask=batch.attention_mask[rows], use_cache=False)
        result: tuple[Tensor, Tensor] = head(output.last_hidden_state, batch)
        return result


def decoder_and_head(model: Any) -> tuple[Any, Any]:
    """The module that gives the last hidden states and the one that turns them into logits, under adapters or not."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    return plain.get_decoder(), plain.get_output_embeddings()


def step_tokens(step: Step, train: Train) -> int:
    """The completion tokens of a whole optimizer step that its loss is divided by; at least 1."""
    chosen = sum(len(example.chosen) for example in step.examples)
    rejected = 0 if isinstance(train.loss, SFT) else sum(len(example.rejected) for example in step.examples)
    return max(1, chosen + rejected + sum(len(rated.completion) for rated in step.feedback))


class _Scorer(Protocol):
    """A micro-batch under the policy: what the losses need of it, from hidden states or from logits."""

    def logps(self, rows: slice) -> Tensor: ...
    def pairwise_cringe(self, **keywords: Any) -> losses.PairwiseCringe: ...
    def binary_cringe(self, **keywords: Any) -> losses.BinaryCringe: ...


@dataclass(frozen=True)
class Fused:
    """From the last hidden states (R, L, D) and the head module, in chunks of tokens."""

    hidden: Tensor
    batch: Batch
    head: Any

    @property
    def _bias(self) -> Tensor | None:
        return getattr(self.head, "bias", None)

    def logps(self, rows: slice) -> Tensor:
        return losses.fused_logps(self.hidden[rows], self.batch.labels[rows], self.head.weight, head_bias=self._bias)

    def pairwise_cringe(self, **keywords: Any) -> losses.PairwiseCringe:
        sides = _sides(self.hidden, self.batch)
        return losses.fused_pairwise_cringe(*sides, self.head.weight, head_bias=self._bias, **keywords)

    def binary_cringe(self, **keywords: Any) -> losses.BinaryCringe:
        rated = self.batch.rated
        hidden, labels = self.hidden[rated], self.batch.labels[rated]
        return losses.fused_binary_cringe(
            hidden, labels, self.batch.good, self.head.weight, head_bias=self._bias, **keywords
        )


@dataclass(frozen=True)
class Plain:
    """From all logits (R, L, V), as the formulas are written: for comparison."""

    logits: Tensor
    batch: Batch

    def logps(self, rows: slice) -> Tensor:
        return losses.completion_logps(self.logits[rows], self.batch.labels[rows])

    def pairwise_cringe(self, **keywords: Any) -> losses.PairwiseCringe:
        return losses.pairwise_cringe(*_sides(self.logits, self.batch), **keywords)

    def binary_cringe(self, **keywords: Any) -> losses.BinaryCringe:
        rated = self.batch.rated
        return losses.binary_cringe(self.logits[rated], self.batch.labels[rated], self.batch.good, **keywords)


def _sides(scores: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    chosen, rejected = batch.chosen, batch.rejected
    return scores[chosen], batch.labels[chosen], scores[rejected], batch.labels[rejected]


def _objective(train: Train, scorer: _Scorer, batch: Batch) -> tuple[Tensor, Tensor]:
    """Sum over pairs of their loss + weight * sum over feedback of its binary Cringe."""
    parts: list[Tensor] = []
    statistics = dict.fromkeys(STATISTICS, torch.zeros((), dtype=torch.float64, device=batch.labels.device))
    if batch.reference.shape[1]:
        loss, of_pairs = _of_pairs(train.loss, scorer, batch)
        # A placeholder keeps its place in the graph, where ZeRO's collectives are, but DPO of nothing is log 2, not 0.
        parts.append(loss.sum() * bool(batch.pairs))
        statistics |= {name: value.detach()[: batch.pairs].double().sum() for name, value in of_pairs.items()}
    if len(batch.good):
        feedback = _of_feedback(train.feedback, scorer, batch)
        parts.append(train.feedback.weight * feedback.sum())
        statistics["feedback_loss"] = feedback.detach().double().sum()
    total = torch.stack(parts).sum()
    statistics["loss"] = total.detach().double()
    return total, torch.stack([statistics[name] for name in STATISTICS])


def _of_pairs(
    loss: PairwiseCringe | SFT | DPO | IPO, scorer: _Scorer, batch: Batch
) -> tuple[Tensor, dict[str, Tensor]]:
    """Per pair (B,): the loss, and the statistics it has; the others are NaN."""
    match loss:
        case PairwiseCringe():
            generators = batch.generators[batch.chosen]
            result = scorer.pairwise_cringe(generator=generators, **_keywords(loss))
            found = {name: getattr(result, name) for name in ("margin", "gate", "ce", "cringe")}
            return result.loss, found
        case SFT():
            ce = -scorer.logps(batch.chosen)
            return ce, _absent(ce) | {"ce": ce}
        case DPO() | IPO():
            chosen, rejected = scorer.logps(batch.chosen), scorer.logps(batch.rejected)
            statistics = _absent(chosen) | {"ce": -chosen, "margin": chosen - rejected}
            return _with_reference(loss, chosen, rejected, batch.reference), statistics


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


def _absent(like: Tensor) -> dict[str, Tensor]:
    return dict.fromkeys(("margin", "gate", "ce", "cringe"), torch.full_like(like, torch.nan))


def _with_reference(loss: DPO | IPO, chosen: Tensor, rejected: Tensor, reference: Tensor) -> Tensor:
    ref_chosen, ref_rejected = reference.to(chosen.dtype)
    if isinstance(loss, IPO):
        return losses.ipo(chosen, rejected, ref_chosen, ref_rejected, beta=loss.beta)
    smoothing = loss.label_smoothing
    return losses.dpo(chosen, rejected, ref_chosen, ref_rejected, beta=loss.beta, label_smoothing=smoothing)


def _of_feedback(feedback: Feedback, scorer: _Scorer, batch: Batch) -> Tensor:
    generators = batch.generators[batch.chosen.stop :]
    return scorer.binary_cringe(alpha=feedback.alpha, k=feedback.k, generator=generators).loss
