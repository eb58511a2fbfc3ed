"""The training objective on top of a Hugging Face causal language model."""

from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypedDict, Unpack

import torch
from torch import Tensor

from pco import losses
from pco.config.train import (
    DPO,
    IPO,
    SFT,
    Feedback,
    Loss,
    PairwiseCringe,
    PythonLoss,
    SimPO,
    Train,
    Unlikelihood,
    is_divided_by_pairs,
)
from pco.training import user_loss
from pco.training.batches import Batch, Step
from pco.training.layout import Reader

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
        decoder, head = decoder_and_head(model)
        layout = "padded" if isinstance(train.loss, SFT) else train.layout  # SFT reads one completion of a prompt
        reader = Reader(decoder, model.config, layout, longest=train.max_pair_tokens)
        self._parts = reader, head  # a tuple: torch would register modules of the model twice
        as_logits = head.forward

        def forward(hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
            scorer = Fused(hidden, batch, head) if train.fused_head else Plain(as_logits(hidden), batch)
            return _objective(train, scorer, batch)

        head.forward = forward

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss, summed over the micro-batch, and detached sums (6,) of what STATISTICS names, float64.

        A statistic that the loss does not have is NaN.
        """
        reader, head = self._parts
        if isinstance(self._train.loss, SFT):  # it never looks at the rejected rows, which are the last
            rows = slice(0, batch.rated.stop)
            batch = replace(batch, input_ids=batch.input_ids[rows], attention_mask=batch.attention_mask[rows])
        hidden, labels = reader.read(batch)
        result: tuple[Tensor, Tensor] = head(hidden, replace(batch, labels=labels))
        return result


def decoder_and_head(model: Any) -> tuple[Any, Any]:
    """The module that gives the last hidden states and the one that turns them into logits, under adapters or not."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    return plain.get_decoder(), plain.get_output_embeddings()


def divisor(step: Step, train: Train) -> int:
    """What the summed loss of a whole optimizer step is divided by: its pairs or its completion tokens; at least 1."""
    return max(1, len(step.examples)) if is_divided_by_pairs(train.loss) else step_tokens(step, train)


def step_tokens(step: Step, train: Train) -> int:
    """The completion tokens of a whole optimizer step that its loss reads; at least 1."""
    chosen = sum(len(example.chosen) for example in step.examples)
    rejected = 0 if isinstance(train.loss, SFT) else sum(len(example.rejected) for example in step.examples)
    return max(1, chosen + rejected + sum(len(rated.completion) for rated in step.feedback))


class _CringeKnobs(TypedDict):
    alpha: float
    k: int
    generator: list[torch.Generator]


class _PairwiseKnobs(_CringeKnobs):
    b: float
    tau: float
    gate_kind: Literal["soft", "hard", "off"]
    detach_gate: bool
    length_normalized_margin: bool


class _Scorer(Protocol):
    """A micro-batch under the policy: what the losses need of it, from hidden states or from logits."""

    def logps(self, rows: slice) -> Tensor: ...
    def pairwise_cringe(self, **knobs: Unpack[_PairwiseKnobs]) -> losses.PairwiseCringe: ...
    def binary_cringe(self, **knobs: Unpack[_CringeKnobs]) -> losses.BinaryCringe: ...
    def unlikelihood(self, *, alpha: float) -> losses.Unlikelihood: ...


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

    def pairwise_cringe(self, **knobs: Unpack[_PairwiseKnobs]) -> losses.PairwiseCringe:
        sides = _sides(self.hidden, self.batch)
        return losses.fused_pairwise_cringe(*sides, self.head.weight, head_bias=self._bias, **knobs)

    def binary_cringe(self, **knobs: Unpack[_CringeKnobs]) -> losses.BinaryCringe:
        rated = self.batch.rated
        hidden, labels = self.hidden[rated], self.batch.labels[rated]
        return losses.fused_binary_cringe(
            hidden, labels, self.batch.good, self.head.weight, head_bias=self._bias, **knobs
        )

    def unlikelihood(self, *, alpha: float) -> losses.Unlikelihood:
        sides = _sides(self.hidden, self.batch)
        return losses.fused_unlikelihood(*sides, self.head.weight, head_bias=self._bias, alpha=alpha)


@dataclass(frozen=True)
class Plain:
    """From all logits (R, L, V), as the formulas are written: for comparison."""

    logits: Tensor
    batch: Batch

    def logps(self, rows: slice) -> Tensor:
        return losses.completion_logps(self.logits[rows], self.batch.labels[rows])

    def pairwise_cringe(self, **knobs: Unpack[_PairwiseKnobs]) -> losses.PairwiseCringe:
        return losses.pairwise_cringe(*_sides(self.logits, self.batch), **knobs)

    def binary_cringe(self, **knobs: Unpack[_CringeKnobs]) -> losses.BinaryCringe:
        rated = self.batch.rated
        return losses.binary_cringe(self.logits[rated], self.batch.labels[rated], self.batch.good, **knobs)

    def unlikelihood(self, *, alpha: float) -> losses.Unlikelihood:
        return losses.unlikelihood(*_sides(self.logits, self.batch), alpha=alpha)


def _sides(scores: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    chosen, rejected = batch.chosen, batch.rejected
    return scores[chosen], batch.labels[chosen], scores[rejected], batch.labels[rejected]


def _objective(train: Train, scorer: _Scorer, batch: Batch) -> tuple[Tensor, Tensor]:
    """Sum over pairs of their loss + weight * sum over feedback of its binary Cringe.

    Where the sum is to be divided by pairs, the feedback's is first divided by its tokens for each pair: what remains
    is weight * its mean over tokens.
    """
    parts: list[Tensor] = []
    statistics = dict.fromkeys(STATISTICS, torch.zeros((), dtype=torch.float64, device=batch.labels.device))
    if batch.reference.shape[1]:
        loss, of_pairs = _of_pairs(train.loss, scorer, batch)
        parts.append(loss.sum())
        statistics |= {name: value.detach()[: batch.pairs].double().sum() for name, value in of_pairs.items()}
    if len(batch.good):
        feedback = _of_feedback(train.feedback, scorer, batch)
        tokens = batch.per_pair.feedback if is_divided_by_pairs(train.loss) else 1.0
        parts.append(train.feedback.weight / tokens * feedback.sum())
        statistics["feedback_loss"] = feedback.detach().double().sum()
    total = torch.stack(parts).sum()
    statistics["loss"] = total.detach().double()
    return total, torch.stack([statistics[name] for name in STATISTICS])


def _of_pairs(loss: Loss, scorer: _Scorer, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Per pair (B,): the loss, and the statistics it has; the others are NaN."""
    if isinstance(loss, SFT):
        ce = -scorer.logps(batch.chosen)
        return ce, _absent(ce) | {"ce": ce}
    if isinstance(loss, PairwiseCringe):
        result = scorer.pairwise_cringe(**_knobs(loss, batch))
        statistics = {name: getattr(result, name) for name in ("margin", "gate", "ce", "cringe")}
        return _with_sft(result.loss, result.ce, loss.sft_weight), statistics
    if isinstance(loss, Unlikelihood):
        pairs = scorer.unlikelihood(alpha=loss.alpha)
        return pairs.loss, _absent(pairs.ce) | {"ce": pairs.ce, "margin": pairs.margin}
    chosen, rejected = scorer.logps(batch.chosen), scorer.logps(batch.rejected)
    statistics = _absent(chosen) | {"ce": -chosen, "margin": chosen - rejected}
    if not batch.pairs:
        # A placeholder keeps its place in the graph, where ZeRO's collectives are, but DPO of nothing is log 2, not 0.
        return 0 * (chosen + rejected), statistics
    # Such a loss is one number per pair, however long, so the cross entropy beside it is the step's mean over tokens.
    weight = loss.sft_weight / batch.per_pair.chosen
    return _with_sft(_of_logps(loss, chosen, rejected, batch), -chosen, weight), statistics


def _of_logps(loss: DPO | IPO | SimPO | PythonLoss, chosen: Tensor, rejected: Tensor, batch: Batch) -> Tensor:
    """Per pair (B,): a loss that reads the log-probabilities (B,) of whole completions alone."""
    ref_chosen, ref_rejected = batch.reference.to(chosen.dtype)
    tokens = _token_counts(batch, batch.chosen).to(chosen), _token_counts(batch, batch.rejected).to(chosen)
    by_length = tokens if isinstance(loss, (DPO, IPO)) and loss.length_normalized else None
    match loss:
        case DPO():
            return losses.dpo(
                chosen,
                rejected,
                ref_chosen,
                ref_rejected,
                beta=loss.beta,
                label_smoothing=loss.label_smoothing,
                tokens=by_length,
            )
        case IPO():
            return losses.ipo(chosen, rejected, ref_chosen, ref_rejected, beta=loss.beta, tokens=by_length)
        case SimPO():
            return losses.simpo(
                chosen,
                rejected,
                tokens=tokens,
                beta=loss.beta,
                gamma=loss.gamma,
                label_smoothing=loss.label_smoothing,
            )
        case PythonLoss():
            reference = (None, None) if loss.reference_policy is None else (ref_chosen, ref_rejected)
            return user_loss.call(loss, losses.PairLogps(chosen, rejected, *tokens, *reference))


def _token_counts(batch: Batch, rows: slice) -> Tensor:
    """Completion tokens (B,) of some rows, at least 1."""
    return (batch.labels[rows] != losses.IGNORE).sum(-1).clamp(min=1)


def _with_sft(loss: Tensor, ce: Tensor, weight: float) -> Tensor:
    # Not even 0 * ce where none is asked for: that is NaN where ce is infinite.
    return loss + weight * ce if weight else loss


def _knobs(loss: PairwiseCringe, batch: Batch) -> _PairwiseKnobs:
    return {
        "alpha": loss.alpha,
        "b": loss.b,
        "tau": loss.tau,
        "k": loss.k,
        "gate_kind": loss.gate,
        "detach_gate": loss.detach_gate,
        "length_normalized_margin": loss.length_normalized_margin,
        "generator": batch.generators[batch.chosen],
    }


def _absent(like: Tensor) -> dict[str, Tensor]:
    return dict.fromkeys(("margin", "gate", "ce", "cringe"), torch.full_like(like, torch.nan))


def _of_feedback(feedback: Feedback, scorer: _Scorer, batch: Batch) -> Tensor:
    generators = batch.generators[batch.chosen.stop :]
    return scorer.binary_cringe(alpha=feedback.alpha, k=feedback.k, generator=generators).loss
