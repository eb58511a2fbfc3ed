"""Log-probabilities and contrast gaps of both sides of pairs, from hidden states and the head."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pco.losses._fused.head import head_scores
from pco.losses._fused.log_odds import log_odds
from pco.losses._fused.work import Work
from pco.losses.checks import IGNORE, Generators, check_k, check_labels, check_range
from pco.losses.contrast import draw_uniforms

# Logits held at a time: 256 MiB in float32, which is 512 tokens at a vocabulary of 128k. Matrix
# products gain little beyond some hundred rows, and the head's gradient is walked once per chunk.
CHUNK_LOGITS = 2**26


@dataclass(frozen=True)
class FusedScores:
    """What the losses need of B_w chosen and B_l rejected completions with N_l rejected tokens."""

    chosen_logps: Tensor  #: (B_w,)
    rejected_logps: Tensor  #: (B_l,)
    gaps: Tensor  #: (N_l,) s[n] - s[c], row by row; empty without contrast
    contrast: Tensor  #: (B_l, T_l) ids, -100 where ignored


def fused_scores(
    chosen_hidden: Tensor,
    chosen_labels: Tensor,
    rejected_hidden: Tensor,
    rejected_labels: Tensor,
    head_weight: Tensor,
    head_bias: Tensor | None,
    *,
    k: int | None = None,
    contrast: Tensor | None = None,
    generator: Generators = None,
    expect_rejected: bool = False,
    chunk_tokens: int | None = None,
) -> FusedScores:
    """Log-probabilities of both sides, and gaps of the rejected tokens if `k` is given.

    `expect_rejected` says that the log-probabilities of the rejected side will be differentiated;
    they can be either way, it only decides what is worth computing in the forward.
    """
    vocab = head_weight.shape[0]
    mask = rejected_labels != IGNORE
    ids = uniforms = None
    if k is not None:
        check_k(k, vocab)
    if k is not None and contrast is not None:
        check_labels("contrast", contrast, tuple(rejected_hidden.shape), "rejected_hidden")
        ids = contrast[mask].long()
        check_range("contrast", ids, vocab)
    elif k is not None:
        uniforms = draw_uniforms(mask, generator).to(mask.device)
    counts = [(labels != IGNORE).sum(-1) for labels in (chosen_labels, rejected_labels)]
    lengths = tuple(torch.cat(counts).tolist())
    rows = chosen_labels.shape[0]
    work = Work(
        positions=(_positions(chosen_labels), _positions(rejected_labels)),
        labels=torch.cat([chosen_labels[chosen_labels != IGNORE], rejected_labels[mask]]).long(),
        lengths=lengths,
        rows=rows,
        eager_rows=len(lengths) if expect_rejected else rows,
        contrast=ids,
        uniforms=uniforms,
        k=k or 0,
        chunk=_chunk_tokens(chunk_tokens, vocab),
        dtype=_compute_dtype(chosen_hidden, head_weight),
        grad=torch.is_grad_enabled(),
    )
    chosen_logps, rejected_logps, gaps, ids = head_scores(
        chosen_hidden.flatten(0, 1), rejected_hidden.flatten(0, 1), head_weight, head_bias, work
    )
    full = torch.full_like(rejected_labels, IGNORE, dtype=torch.int64)
    if k is not None:
        full[mask] = ids
    return FusedScores(chosen_logps, rejected_logps, gaps, full)


def fused_log_odds(
    hidden: Tensor, labels: Tensor, head_weight: Tensor, *, head_bias: Tensor | None, chunk_tokens: int | None
) -> Tensor:
    """Log-odds (N,) of the N labels (B, T) that count, row by row."""
    mask = labels != IGNORE
    none = labels.new_empty(0)
    lengths = tuple(mask.sum(-1).tolist())
    work = Work(
        positions=(_positions(labels), none),
        labels=labels[mask].long(),
        lengths=lengths,
        rows=len(lengths),
        eager_rows=0,
        contrast=None,
        uniforms=None,
        k=0,
        chunk=_chunk_tokens(chunk_tokens, head_weight.shape[0]),
        dtype=_compute_dtype(hidden, head_weight),
        grad=torch.is_grad_enabled(),
    )
    return log_odds(hidden.flatten(0, 1), head_weight, head_bias, work)


def _positions(labels: Tensor) -> Tensor:
    return (labels.flatten() != IGNORE).nonzero().squeeze(-1)


def _chunk_tokens(asked: int | None, vocab: int) -> int:
    if asked is None:
        return min(max(CHUNK_LOGITS // vocab, 16), 4096)
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise ValueError(
            f"chunk_tokens must be a whole number of at least 1, got {asked!r}: leave it out for the default"
        )
    return asked


def _compute_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype of the matrix products: what autocast asks for, as `F.linear` would use it."""
    device = hidden.device.type
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    if dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return dtype
