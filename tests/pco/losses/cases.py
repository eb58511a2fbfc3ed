"""Random batches of pairs for the tests: ragged, padded, some rows empty."""

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

IGNORED = -100


@dataclass(frozen=True)
class Case:
    chosen: Tensor  #: (B, T_w, D or V)
    chosen_labels: Tensor
    rejected: Tensor
    rejected_labels: Tensor
    weight: Tensor  #: (V, D)
    bias: Tensor | None
    contrast: Tensor  #: (B, T_l), nowhere the negative token

    @property
    def hidden(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.chosen, self.chosen_labels, self.rejected, self.rejected_labels

    @property
    def logits(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        chosen, rejected = (torch.nn.functional.linear(h, self.weight, self.bias) for h in (self.chosen, self.rejected))
        return chosen, self.chosen_labels, rejected, self.rejected_labels

    @property
    def leaves(self) -> list[Tensor]:
        leaves = [self.chosen, self.rejected, self.weight]
        return leaves if self.bias is None else [*leaves, self.bias]


def labels(rows: int, length: int, vocab: int, rng: torch.Generator, ignore: float) -> Tensor:
    ids = torch.randint(vocab, (rows, length), generator=rng)
    return ids.masked_fill(torch.rand(rows, length, generator=rng) < ignore, IGNORED)


def make(
    seed: int = 0,
    *,
    rows: int = 3,
    chosen: int = 6,
    rejected: int = 5,
    vocab: int = 11,
    dim: int = 4,
    bias: bool = False,
    ignore: float = 0.3,
    scale: float = 1.5,
    dtype: torch.dtype = torch.float64,
) -> Case:
    rng = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=rng, dtype=torch.float64) * scale
        return values.to(dtype).requires_grad_()

    negatives = labels(rows, rejected, vocab, rng, ignore)
    step = torch.randint(1, vocab, negatives.shape, generator=rng)
    return Case(
        chosen=leaf(rows, chosen, dim),
        chosen_labels=labels(rows, chosen, vocab, rng, ignore),
        rejected=leaf(rows, rejected, dim),
        rejected_labels=negatives,
        weight=leaf(vocab, dim),
        bias=leaf(vocab) if bias else None,
        contrast=(negatives.clamp(min=0) + step) % vocab,
    )


def gradients(value: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
    return list(found)


cases = st.builds(
    make,
    st.integers(0, 2**31),
    rows=st.integers(1, 3),
    chosen=st.integers(0, 5),
    rejected=st.integers(0, 5),
    vocab=st.integers(3, 9),
    dim=st.integers(1, 4),
    bias=st.booleans(),
    ignore=st.sampled_from([0.0, 0.4, 1.0]),
)

keywords: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "alpha": st.floats(0, 3),
        "b": st.floats(-5, 5),
        "tau": st.floats(0.3, 20),
        "gate_kind": st.sampled_from(["soft", "hard", "off"]),
        "detach_gate": st.booleans(),
        "length_normalized_margin": st.booleans(),
    }
)

PLAIN: dict[str, Any] = {"alpha": 0.7, "b": 0.5, "tau": 3.0, "k": 2}
