"""Sums of the head's gradient over tokens, and what of it the forward keeps for the backward."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# A completion shorter than this is not worth a pass over the head's gradient of its own.
FREE_TOKENS = 128
# Nor, shorter than this, a buffer of its own: filling and adding V * D numbers costs more than it saves.
KEPT_TOKENS = 512
# Head gradients kept ahead, beyond the free one, in units of one chunk of logits.
KEPT_CHUNKS = 1
# The smallest share of the head's rows worth keeping.
KEPT_SHARE = 1 / 8
# Rows of the head per product where the product is not in the dtype of the sum.
TILE = 16384


@dataclass(frozen=True)
class HeadGrad:
    """Sums over tokens of `r h^T` and of `r`, for some consecutive rows of the head."""

    weight: Tensor  #: (rows, D)
    bias: Tensor | None  #: (rows,)

    @staticmethod
    def zeros(rows: int, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> "HeadGrad":
        return HeadGrad(
            weight.new_zeros(rows, weight.shape[1], dtype=dtype),
            None if bias is None else bias.new_zeros(rows, dtype=dtype),
        )

    def add(self, residual: Tensor, hidden: Tensor, factor: Tensor | None = None) -> None:
        """Add tokens with residuals (n, rows), hidden states (n, D) and a factor (n,) each."""
        if self.bias is not None:
            weights = residual.new_ones(len(residual)) if factor is None else factor.to(residual)
            self.bias.add_(residual.t() @ weights)
        if factor is not None:
            hidden = (hidden * factor.unsqueeze(-1)).to(hidden.dtype)
        if residual.dtype == self.weight.dtype:
            self.weight.addmm_(residual.t(), hidden)
        elif residual.is_cuda:
            torch.addmm(self.weight, residual.t(), hidden, out_dtype=self.weight.dtype, out=self.weight)
        else:
            # A tile at a time, so that no second (V, D) tensor arises.
            for start in range(0, len(self.weight), TILE):
                tile = slice(start, start + TILE)
                self.weight[tile].add_(residual[:, tile].t() @ hidden)

    def scale(self, factor: Tensor) -> None:
        self.weight.mul_(factor)
        if self.bias is not None:
            self.bias.mul_(factor)

    def add_scaled(self, other: "HeadGrad", factor: Tensor) -> None:
        """Add another sum over the first rows."""
        rows = len(other.weight)
        self.weight[:rows].addcmul_(other.weight, factor)
        if self.bias is not None and other.bias is not None:
            self.bias[:rows].addcmul_(other.bias, factor)

    def rows_from(self, start: int) -> "HeadGrad":
        """A view of the rows from `start` on."""
        return HeadGrad(self.weight[start:], None if self.bias is None else self.bias[start:])


@dataclass(frozen=True)
class Ahead:
    """Gradients that the forward has computed, all but the factor of their completion."""

    hidden: tuple[Tensor | None, Tensor | None]  #: laid out as first and second
    head: dict[int, HeadGrad]  #: by completion, for the first rows of the head
    retained: int  #: so many tokens are in none of these: their probabilities stay at hand instead


NOTHING = Ahead((None, None), {}, 0)


def matmul_into(out: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """`out = left @ right`, where `out` may be wider than the factors.

    CUDA then writes its float32 sums as they are. A CPU rounds a bf16 product to bf16, just as the model's own head.
    """
    if left.dtype == out.dtype:
        return torch.mm(left, right, out=out)
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=out.dtype, out=out)
    return out.copy_(left @ right)


def rows_to_keep(lengths: Sequence[int], chunk: int, vocab: int, dim: int) -> dict[int, int]:
    """Of which completions the head's gradient is kept ahead, and for how many rows of the head.

    The longest completion is free, for its buffer becomes the gradient. The others share the budget evenly.
    """
    longest_first = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    worth = [row for row in longest_first if lengths[row] >= FREE_TOKENS]
    others = [row for row in worth[1:] if lengths[row] >= KEPT_TOKENS]
    share = KEPT_CHUNKS * chunk * vocab // (dim * len(others)) if others else 0
    if share < KEPT_SHARE * vocab:
        others = []
    return dict.fromkeys(worth[:1], vocab) | dict.fromkeys(others, min(share, vocab))
