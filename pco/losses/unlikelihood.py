"""Unlikelihood (arXiv 1908.04319): chosen completions are imitated, each token of rejected ones made less likely."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pco.losses._fused.scores import fused_log_odds
from pco.losses.checks import (
    IGNORE,
    check_hidden,
    check_labels,
    check_number,
    check_pairs,
    check_range,
    check_scores,
    wide,
)
from pco.losses.fused import fused_logps
from pco.losses.likelihood import completion_logps, per_row


@dataclass(frozen=True)
class Unlikelihood:
    """One micro-batch of B pairs. Sums over tokens, in nats. `loss = ce + alpha * unlikelihood`."""

    loss: Tensor  #: (B,)
    ce: Tensor  #: (B,) cross entropy of the chosen completion
    unlikelihood: Tensor  #: (B,) sum of -log(1 - p) over the tokens of the rejected completion
    margin: Tensor  #: (B,) log-probability of chosen minus rejected


def unlikelihood(
    chosen_logits: Tensor,
    chosen_labels: Tensor,
    rejected_logits: Tensor,
    rejected_labels: Tensor,
    *,
    alpha: float,
) -> Unlikelihood:
    """Cross entropy of chosen completions and token-level unlikelihood of rejected ones (arXiv 1908.04319, eq. 4).

    Args:
        chosen_logits: (B, T_w, V), any floating dtype.
        chosen_labels: (B, T_w) token ids, -100 where ignored.
        rejected_logits: (B, T_l, V).
        rejected_labels: (B, T_l).
        alpha: weight of the unlikelihood, >= 0.

    Returns:
        `Unlikelihood`, unreduced.

    Raises:
        ValueError: any argument outside what is said here.

    """
    check_number("alpha", alpha, least=0)
    check_scores("chosen_logits", chosen_logits, "V")
    check_scores("rejected_logits", rejected_logits, "V")
    check_pairs(chosen_logits, rejected_logits, "logits")
    check_labels("rejected_labels", rejected_labels, tuple(rejected_logits.shape), "rejected_logits")
    mask = rejected_labels != IGNORE
    labels = rejected_labels[mask].long().unsqueeze(1)
    check_range("rejected_labels", labels, rejected_logits.shape[-1])
    logits = rejected_logits[mask].to(wide(rejected_logits.dtype))
    others = logits.scatter(1, labels, -torch.inf).logsumexp(1)
    odds = logits.gather(1, labels).squeeze(1) - others
    return _combine(completion_logps(chosen_logits, chosen_labels), odds, mask, alpha)


def fused_unlikelihood(
    chosen_hidden: Tensor,
    chosen_labels: Tensor,
    rejected_hidden: Tensor,
    rejected_labels: Tensor,
    head_weight: Tensor,
    *,
    head_bias: Tensor | None = None,
    chunk_tokens: int | None = None,
    alpha: float,
) -> Unlikelihood:
    """`unlikelihood` from hidden states and the head, never holding (tokens, V) logits.

    `chosen_hidden` (B, T_w, D) and `rejected_hidden` (B, T_l, D) are the last hidden states, after the final norm;
    `head_weight` is (V, D), `head_bias` (V,). For `chunk_tokens` see `fused_logps`. The backward computes the logits
    of rejected tokens anew.

    Returns:
        `Unlikelihood`, unreduced.

    Raises:
        ValueError: any argument outside what is said here.

    """
    check_number("alpha", alpha, least=0)
    check_hidden("chosen_hidden", chosen_hidden, chosen_labels, head_weight, head_bias)
    check_hidden("rejected_hidden", rejected_hidden, rejected_labels, head_weight, head_bias)
    check_pairs(chosen_hidden, rejected_hidden, "hidden")
    chosen = fused_logps(chosen_hidden, chosen_labels, head_weight, head_bias=head_bias, chunk_tokens=chunk_tokens)
    odds = fused_log_odds(rejected_hidden, rejected_labels, head_weight, head_bias=head_bias, chunk_tokens=chunk_tokens)
    return _combine(chosen, odds, rejected_labels != IGNORE, alpha)


def _combine(chosen_logps: Tensor, odds: Tensor, mask: Tensor, alpha: float) -> Unlikelihood:
    """From log-odds of the N rejected tokens, of which sigmoid is the probability: one arithmetic for both forms."""
    terms, rejected_logps = per_row(-F.logsigmoid(-odds), mask), per_row(F.logsigmoid(odds), mask)
    ce = -chosen_logps
    return Unlikelihood(ce + alpha * terms, ce, terms, chosen_logps - rejected_logps)
