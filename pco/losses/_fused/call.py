"""The tensors that one pass of the fused core works on, and what both of its passes do with them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pco.losses._fused.gradients import matmul_into
from pco.losses._fused.work import Work
from pco.losses.checks import wide


@dataclass(frozen=True)
class Call:
    """The tensors of one pass. Never outlives the pass, for the sake of ZeRO-3."""

    first: Tensor  #: (T_1, D)
    second: Tensor  #: (T_2, D)
    weight: Tensor  #: (V, D)
    bias: Tensor | None  #: (V,)
    head: Tensor  #: the weight in the dtype of the products
    work: Work

    @staticmethod
    def of(first: Tensor, second: Tensor, weight: Tensor, bias: Tensor | None, work: Work) -> "Call":
        return Call(first, second, weight, bias, weight.to(work.dtype), work)

    @property
    def vocab(self) -> int:
        return self.weight.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """Of the logits and of all sums."""
        return wide(self.work.dtype)

    def new(self, *shape: int) -> Tensor:
        return self.head.new_empty(shape, dtype=self.dtype)

    def hidden(self, tokens: slice, work: Work | None = None) -> Tensor:
        return (work or self.work).hidden(self.first, self.second, tokens)

    def logits(self, hidden: Tensor, start: int, out: Tensor) -> Tensor:
        """Logits (n, V - start) of hidden states (n, D), leaving out the first rows of the head."""
        head, out = self.head[start:], out[: len(hidden)]
        bias = None if self.bias is None else self.bias[start:].to(self.dtype)
        if bias is not None and head.dtype == out.dtype:
            return torch.addmm(bias, hidden, head.t(), out=out)
        matmul_into(out, hidden, head.t())
        return out if bias is None else out.add_(bias)


def residual_of(probs: Tensor, labels: Tensor) -> Tensor:
    """Probabilities minus onehot(labels), in place. A label below 0 lies outside the rows at hand."""
    ones = (labels >= 0).to(probs.dtype).unsqueeze(1)
    return probs.scatter_add_(1, labels.clamp(min=0).unsqueeze(1), -ones)


def put(work: Work, tokens: slice, rows: Tensor, targets: tuple[Tensor | None, Tensor | None]) -> None:
    """Add rows (n, D) to where their tokens lie in first and second."""
    parts = work.parts(tokens)
    pieces = torch.split(rows, [part.stop - part.start for part in parts])
    for target, positions, part, piece in zip(targets, work.positions, parts, pieces, strict=True):
        if target is not None and len(piece):
            target.index_add_(0, positions[part], piece.to(target.dtype))


def per_token(work: Work, factors: Tensor) -> Tensor:
    lengths = torch.tensor(work.lengths, device=factors.device)
    return factors.repeat_interleave(lengths, output_size=work.labels.numel())
