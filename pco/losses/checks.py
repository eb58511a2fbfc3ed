"""Argument checks of the losses. Each raises `ValueError` saying what was wrong, expected, and to do."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

IGNORE = -100

Generators = torch.Generator | Sequence[torch.Generator] | None


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute in: float64 stays, everything narrower becomes float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_labels(name: str, labels: Tensor, shape: tuple[int, ...], of: str) -> None:
    """`labels` are whole numbers of shape (B, T), as the first two dimensions of the tensor `of`."""
    if labels.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name} must hold token ids (int64), got {labels.dtype}: convert with .long()")
    if tuple(labels.shape) != shape[:2]:
        raise ValueError(
            f"{name} must have the shape {tuple(shape[:2])} of {of} {tuple(shape)}, got "
            f"{tuple(labels.shape)}: drop the last position of {of} and the first label, so that "
            f"position t predicts label t"
        )


def check_scores(name: str, scores: Tensor, last: str) -> None:
    """`scores` (logits or hidden states) are floating point of shape (B, T, last)."""
    if scores.dim() != 3 or not scores.is_floating_point():
        raise ValueError(
            f"{name} must be a floating point tensor of shape (B, T, {last}), got {scores.dtype} of "
            f"shape {tuple(scores.shape)}"
        )


def check_range(name: str, ids: Tensor, vocab: int) -> None:
    """Every id lies in [0, vocab): a negative one would silently index from the end."""
    if ids.numel() == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(ids))
    if low < 0 or high >= vocab:
        raise ValueError(
            f"{name} holds ids from {low} to {high}, outside [0, {vocab}): only {IGNORE} marks a "
            f"position to ignore; check that the tokenizer and the head belong together"
        )


def check_k(k: int, vocab: int) -> None:
    """There are k candidates besides the negative token."""
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k must be a whole number of at least 1, got {k!r}: 5 is the usual choice")
    if k >= vocab:
        raise ValueError(
            f"k = {k} contrast candidates besides the negative token need a vocabulary of at least "
            f"{k + 1}, but it has {vocab}: lower k to {vocab - 1} or less"
        )


def check_number(name: str, value: float, *, above: float | None = None, least: float = -math.inf) -> None:
    """`value` is a finite number, larger than `above` and at least `least`."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite Python number, got {value!r}")
    if above is not None and value <= above:
        raise ValueError(f"{name} must be larger than {above:g}, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least:g}, got {value!r}")


def check_same_rows(**tensors: Tensor) -> None:
    """All are of one shape (B,): (B, 1) against (B,) would broadcast to (B, B) without a word."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if any(len(shape) != 1 for shape in shapes.values()) or len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(
            f"expected one number per completion, all of one shape (B,), got {listed}: squeeze a "
            f"trailing dimension of 1, it would broadcast to (B, B)"
        )


def check_hidden(name: str, hidden: Tensor, labels: Tensor, head_weight: Tensor, head_bias: Tensor | None) -> None:
    """Hidden states (B, T, D), labels (B, T) in the vocabulary, head (V, D), bias (V,)."""
    check_scores(name, hidden, "D")
    check_labels(name.replace("hidden", "labels"), labels, tuple(hidden.shape), name)
    if head_weight.dim() != 2 or head_weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"head_weight must have the shape (V, D) with D = {hidden.shape[-1]} of {name}, got "
            f"{tuple(head_weight.shape)}: under ZeRO-3 call the loss inside the head's forward, where "
            f"the weight is gathered"
        )
    if head_bias is not None and head_bias.shape != head_weight.shape[:1]:
        raise ValueError(
            f"head_bias must have the shape (V,) = ({head_weight.shape[0]},), got {tuple(head_bias.shape)}"
        )
    check_range(name.replace("hidden", "labels"), labels[labels != IGNORE], head_weight.shape[0])


def check_pairs(chosen: Tensor, rejected: Tensor, kind: str) -> None:
    """Chosen and rejected hold the same number of pairs and the same last dimension."""
    if chosen.shape[0] != rejected.shape[0] or chosen.shape[2] != rejected.shape[2]:
        raise ValueError(
            f"chosen_{kind} {tuple(chosen.shape)} and rejected_{kind} {tuple(rejected.shape)} must agree "
            f"in their first and last dimensions: row i of each is one pair"
        )
