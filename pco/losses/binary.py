"""Binary Cringe (arXiv 2211.05826): good completions are imitated, bad ones contrasted."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pco.losses._fused.scores import fused_scores
from pco.losses.checks import (
    IGNORE,
    Generators,
    check_hidden,
    check_k,
    check_labels,
    check_number,
    check_range,
    check_scores,
)
from pco.losses.contrast import sample_contrast
from pco.losses.likelihood import completion_logps, per_row
from pco.losses.pairwise import cringe, softplus


@dataclass(frozen=True)
class BinaryCringe:
    """One micro-batch of B completions with a thumb up or down. Sums over tokens, in nats.

    `loss = ce + alpha * cringe`, where one of the two is 0.
    """

    loss: Tensor  #: (B,)
    ce: Tensor  #: (B,) cross entropy of a good completion, 0 for a bad one
    cringe: Tensor  #: (B,) Cringe term of a bad completion, 0 for a good one
    contrast: Tensor  #: (B, T) the contrast ids used, -100 where ignored and in good completions


def binary_cringe(
    logits: Tensor,
    labels: Tensor,
    good: Tensor,
    *,
    alpha: float,
    k: int,
    contrast: Tensor | None = None,
    generator: Generators = None,
) -> BinaryCringe:
    """Cringe loss on unpaired feedback (arXiv 2211.05826), from logits.

    Args:
        logits: (B, T, V), any floating dtype.
        labels: (B, T) token ids, -100 where ignored.
        good: (B,) bool, whether a completion was liked.
        alpha: weight of the Cringe term, >= 0.
        k: number of contrast candidates, 1 <= k <= V - 1.
        contrast: (B, T) contrast ids to use; read in bad completions only.
        generator: see `sample_contrast`. Good completions draw nothing.

    Returns:
        `BinaryCringe`, unreduced.

    Raises:
        ValueError: any argument outside what is said here.

    """
    check_scores("logits", logits, "V")
    check_labels("labels", labels, tuple(logits.shape), "logits")
    check_good(good, labels, alpha)
    check_k(k, logits.shape[-1])
    check_range("labels", labels[labels != IGNORE], logits.shape[-1])
    negatives = labels.masked_fill(good.unsqueeze(1), IGNORE)
    if contrast is None:
        contrast = sample_contrast(logits, negatives, k=k, generator=generator)
    ce = -completion_logps(logits, labels.masked_fill(~good.unsqueeze(1), IGNORE))
    terms = cringe(logits, negatives, contrast).sum(-1)
    return BinaryCringe(ce + alpha * terms, ce, terms, contrast.masked_fill(negatives == IGNORE, IGNORE))


def fused_binary_cringe(
    hidden: Tensor,
    labels: Tensor,
    good: Tensor,
    head_weight: Tensor,
    *,
    head_bias: Tensor | None = None,
    chunk_tokens: int | None = None,
    alpha: float,
    k: int,
    contrast: Tensor | None = None,
    generator: Generators = None,
) -> BinaryCringe:
    """`binary_cringe` from hidden states and the head, never holding (tokens, V) logits.

    `hidden` (B, T, D) are the last hidden states, after the final norm; `head_weight` is (V, D), `head_bias` (V,). For
    `chunk_tokens` see `fused_logps`. All other arguments as in `binary_cringe`.

    Returns:
        `BinaryCringe`, unreduced.

    Raises:
        ValueError: any argument outside what is said here.

    """
    check_hidden("hidden", hidden, labels, head_weight, head_bias)
    check_good(good, labels, alpha)
    column = good.unsqueeze(1)
    negatives = labels.masked_fill(column, IGNORE)
    # Every row on both sides, with the labels of the other kind ignored: only tokens that count cost.
    scores = fused_scores(
        hidden,
        labels.masked_fill(~column, IGNORE),
        hidden,
        negatives,
        head_weight,
        head_bias,
        k=k,
        contrast=contrast,
        generator=generator,
        chunk_tokens=chunk_tokens,
    )
    terms = per_row(softplus(scores.gaps), negatives != IGNORE)
    ce = -scores.chosen_logps
    return BinaryCringe(ce + alpha * terms, ce, terms, scores.contrast)


def check_good(good: Tensor, labels: Tensor, alpha: float) -> None:
    """One bool per completion, and a weight that does not reward bad tokens."""
    check_number("alpha", alpha, least=0)
    if good.dtype != torch.bool or good.shape != labels.shape[:1]:
        raise ValueError(
            f"good must hold one bool per completion, shape ({labels.shape[0]},), got {good.dtype} of "
            f"shape {tuple(good.shape)}"
        )
