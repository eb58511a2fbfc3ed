"""Log-probabilities of completions, and the plain likelihood loss (SFT)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from pco.losses.checks import IGNORE, check_labels, check_range, check_scores, wide


def completion_logps(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of log p(label) over the completion tokens of each row.

    Args:
        logits: (B, T, V), any floating dtype. Positions whose label is -100 may hold anything.
        labels: (B, T) token ids, -100 where ignored.

    Returns:
        (B,) in nats, float32 (float64 for float64 logits). 0 for a row without tokens.

    Raises:
        ValueError: shapes that do not fit, or a label outside the vocabulary.

    """
    check_scores("logits", logits, "V")
    check_labels("labels", labels, tuple(logits.shape), "logits")
    mask = labels != IGNORE
    check_range("labels", labels[mask], logits.shape[-1])
    # Ignored rows are left out rather than multiplied by zero: 0 * NaN is NaN in the backward.
    rows = logits.flatten(0, 1) if bool(mask.all()) else logits[mask]
    nll = F.cross_entropy(rows.to(wide(logits.dtype)), labels[mask].long(), reduction="none")
    return -per_row(nll, mask)


def per_row(values: Tensor, mask: Tensor) -> Tensor:
    """Sum the values (N,) of the N true positions of `mask` (B, T) over each row: (B,)."""
    # Not index_add, which adds in an undefined order on CUDA.
    parts = torch.split(values, mask.sum(-1).tolist())
    return torch.stack([part.sum() for part in parts]) if parts else values.new_zeros(0)


def sft(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of each completion, summed over its tokens: `-completion_logps(logits, labels)`.

    Shapes, dtypes and errors as in `completion_logps`.
    """
    return -completion_logps(logits, labels)
