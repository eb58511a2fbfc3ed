"""Pairwise Cringe (arXiv 2312.16682): the Cringe loss behind a gate on the pair's margin."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pco.losses._fused.scores import fused_scores
from pco.losses.checks import (
    IGNORE,
    Generators,
    check_hidden,
    check_k,
    check_labels,
    check_number,
    check_pairs,
    check_range,
    check_same_rows,
    check_scores,
    wide,
)
from pco.losses.contrast import sample_contrast
from pco.losses.likelihood import completion_logps, per_row

GateKind = Literal["soft", "hard", "off"]


@dataclass(frozen=True)
class PairwiseCringe:
    """One micro-batch of B pairs. Sums over completion tokens, in nats; float32 or float64.

    `loss = gate * (ce + alpha * cringe)`. Each of them can be differentiated, `contrast` cannot.
    """

    loss: Tensor  #: (B,)
    gate: Tensor  #: (B,) in [0, 1]
    margin: Tensor  #: (B,) log p(chosen) - log p(rejected)
    ce: Tensor  #: (B,) cross entropy of the chosen completion
    cringe: Tensor  #: (B,) Cringe term of the rejected completion, before alpha
    contrast: Tensor  #: (B, T_l) the contrast ids used, -100 where ignored


def cringe(logits: Tensor, negatives: Tensor, contrast: Tensor) -> Tensor:
    """The Cringe term of each token (arXiv 2211.05826): `softplus(s[n] - s[c])`.

    It is the negative log-probability of the contrast token c in a two-way choice against the
    negative token n. The gradient flows through both logits.

    Args:
        logits: (B, T, V).
        negatives: (B, T) token ids, -100 where ignored.
        contrast: (B, T) token ids; what stands where `negatives` is -100 does not matter.

    Returns:
        (B, T) in nats, 0 where ignored; float32 (float64 for float64 logits).

    Raises:
        ValueError: shapes that do not fit, or an id outside the vocabulary.

    """
    check_scores("logits", logits, "V")
    shape = tuple(logits.shape)
    mask = negatives != IGNORE
    for name, ids in (("negatives", negatives), ("contrast", contrast)):
        check_labels(name, ids, shape, "logits")
        check_range(name, ids[mask], shape[-1])
    both = torch.stack([negatives, contrast], dim=-1).long().masked_fill(~mask.unsqueeze(-1), 0)
    scores = logits.gather(-1, both).to(wide(logits.dtype))
    # Masked before the softplus, so that an ignored position passes no gradient, not even 0 * NaN.
    gap = torch.where(mask, scores[..., 0] - scores[..., 1], 0)
    return torch.where(mask, softplus(gap), 0)


def softplus(gap: Tensor) -> Tensor:
    """log(1 + exp(gap)), exact at both ends. `F.softplus` turns linear above 20, which float64 sees."""
    return -F.logsigmoid(-gap)


def gate(margin: Tensor, *, b: float, tau: float, kind: GateKind = "soft", detach: bool = False) -> Tensor:
    """How much a pair still counts, given its margin (arXiv 2312.16682).

    "soft": `sigmoid((b - margin) / tau)`. "hard": 1 if margin < b, else 0. "off": 1.

    Args:
        margin: (B,) in nats.
        b: the margin at which the soft gate is one half.
        tau: temperature of the soft gate, > 0 (read by the soft gate only, checked for all).
        kind: "soft", "hard" or "off".
        detach: treat the gate as a constant: no gradient flows into the margin.

    Returns:
        (B,), float32 (float64 for a float64 margin).

    Raises:
        ValueError: tau <= 0, b not finite, a margin that is not (B,), or an unknown kind.

    """
    check_same_rows(margin=margin)
    check_gate(b, tau, kind)
    scaled = (b - margin.to(wide(margin.dtype))) / tau
    if detach:
        scaled = scaled.detach()
    match kind:
        case "soft":
            return torch.sigmoid(scaled)
        case "hard":
            # (b - margin) / tau, since dividing by a positive number keeps the sign.
            return (scaled > 0).to(scaled.dtype)
        case "off":
            return torch.ones_like(scaled)


def check_gate(b: float, tau: float, kind: str) -> None:
    """The knobs of the gate."""
    check_number("b", b)
    check_number("tau", tau, above=0)
    if kind not in ("soft", "hard", "off"):
        raise ValueError(f'gate kind must be "soft", "hard" or "off", got {kind!r}')


def pairwise_cringe(
    chosen_logits: Tensor,
    chosen_labels: Tensor,
    rejected_logits: Tensor,
    rejected_labels: Tensor,
    *,
    alpha: float,
    b: float,
    tau: float,
    k: int,
    gate_kind: GateKind = "soft",
    detach_gate: bool = False,
    length_normalized_margin: bool = False,
    contrast: Tensor | None = None,
    generator: Generators = None,
) -> PairwiseCringe:
    """The Pairwise Cringe loss of B pairs (arXiv 2312.16682), from their logits.

    Args:
        chosen_logits: (B, T_w, V), any floating dtype.
        chosen_labels: (B, T_w) token ids, -100 where ignored.
        rejected_logits: (B, T_l, V).
        rejected_labels: (B, T_l).
        alpha: weight of the Cringe term against the cross entropy, >= 0.
        b: see `gate`.
        tau: see `gate`.
        gate_kind: see `gate`.
        detach_gate: see `gate`.
        k: number of contrast candidates, 1 <= k <= V - 1.
        length_normalized_margin: divide each log-probability in the margin by its number of tokens.
        contrast: (B, T_l) contrast ids to use instead of sampling them.
        generator: see `sample_contrast`; unused if `contrast` is given.

    Returns:
        `PairwiseCringe`, unreduced.

    Raises:
        ValueError: any argument outside what is said here.

    """
    check_scores("chosen_logits", chosen_logits, "V")
    check_scores("rejected_logits", rejected_logits, "V")
    check_pairs(chosen_logits, rejected_logits, "logits")
    check_labels("chosen_labels", chosen_labels, tuple(chosen_logits.shape), "chosen_logits")
    check_labels("rejected_labels", rejected_labels, tuple(rejected_logits.shape), "rejected_logits")
    check_gate(b, tau, gate_kind)
    check_k(k, rejected_logits.shape[-1])
    if contrast is None:
        contrast = sample_contrast(rejected_logits, rejected_labels, k=k, generator=generator)
    rejected = rejected_labels != IGNORE
    return _combine(
        completion_logps(chosen_logits, chosen_labels),
        completion_logps(rejected_logits, rejected_labels),
        cringe(rejected_logits, rejected_labels, contrast).sum(-1),
        contrast.masked_fill(~rejected, IGNORE),
        _token_counts(chosen_labels, rejected_labels) if length_normalized_margin else None,
        alpha=alpha,
        b=b,
        tau=tau,
        gate_kind=gate_kind,
        detach_gate=detach_gate,
    )


def fused_pairwise_cringe(
    chosen_hidden: Tensor,
    chosen_labels: Tensor,
    rejected_hidden: Tensor,
    rejected_labels: Tensor,
    head_weight: Tensor,
    *,
    head_bias: Tensor | None = None,
    chunk_tokens: int | None = None,
    alpha: float,
    b: float,
    tau: float,
    k: int,
    gate_kind: GateKind = "soft",
    detach_gate: bool = False,
    length_normalized_margin: bool = False,
    contrast: Tensor | None = None,
    generator: Generators = None,
) -> PairwiseCringe:
    """`pairwise_cringe` from hidden states and the head, never holding (tokens, V) logits.

    The same values and the same gradients (hidden states, head weight, head bias) within float
    tolerance. With a detached, hard or absent gate the backward of the rejected completions touches
    two rows of the head per token, not the whole vocabulary.

    `chosen_hidden` (B, T_w, D) and `rejected_hidden` (B, T_l, D) are the last hidden states, after the final norm;
    `head_weight` is (V, D), tied or not, trainable or not, and `head_bias` (V,). `chunk_tokens` trades memory for
    speed, see `fused_logps`. All other arguments as in `pairwise_cringe`.

    Returns:
        `PairwiseCringe`, unreduced.

    Raises:
        ValueError: any argument outside what is said here.

    """
    check_hidden("chosen_hidden", chosen_hidden, chosen_labels, head_weight, head_bias)
    check_hidden("rejected_hidden", rejected_hidden, rejected_labels, head_weight, head_bias)
    check_pairs(chosen_hidden, rejected_hidden, "hidden")
    check_gate(b, tau, gate_kind)
    scores = fused_scores(
        chosen_hidden,
        chosen_labels,
        rejected_hidden,
        rejected_labels,
        head_weight,
        head_bias,
        k=k,
        contrast=contrast,
        generator=generator,
        expect_rejected=gate_kind == "soft" and not detach_gate,
        chunk_tokens=chunk_tokens,
    )
    return _combine(
        scores.chosen_logps,
        scores.rejected_logps,
        per_row(softplus(scores.gaps), rejected_labels != IGNORE),
        scores.contrast,
        _token_counts(chosen_labels, rejected_labels) if length_normalized_margin else None,
        alpha=alpha,
        b=b,
        tau=tau,
        gate_kind=gate_kind,
        detach_gate=detach_gate,
    )


def _combine(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    cringe_sums: Tensor,
    contrast: Tensor,
    counts: tuple[Tensor, Tensor] | None,
    *,
    alpha: float,
    b: float,
    tau: float,
    gate_kind: GateKind,
    detach_gate: bool,
) -> PairwiseCringe:
    """Everything after the log-probabilities and Cringe sums (B,): one arithmetic for both forms."""
    check_number("alpha", alpha, least=0)
    chosen, rejected = counts if counts is not None else (1, 1)
    margin = chosen_logps / chosen - rejected_logps / rejected
    factor = gate(margin, b=b, tau=tau, kind=gate_kind, detach=detach_gate)
    ce = -chosen_logps
    loss = factor * (ce + alpha * cringe_sums)
    return PairwiseCringe(loss, factor, margin, ce, cringe_sums, contrast)


def _token_counts(chosen_labels: Tensor, rejected_labels: Tensor) -> tuple[Tensor, Tensor]:
    # At least 1: an empty completion has the log-probability 0, and 0 / 0 is no margin.
    chosen, rejected = ((labels != IGNORE).sum(-1).clamp(min=1) for labels in (chosen_labels, rejected_labels))
    return chosen, rejected
