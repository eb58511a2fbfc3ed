"""Which tokens of two padded batches count, and the walk over them in chunks."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Work:
    """What one call has to do. "First" are the chosen completions, "second" the rejected ones.

    N counts the tokens that are not ignored, those of the first before those of the second.
    """

    positions: tuple[Tensor, Tensor]  #: where they lie in the flattened first and second
    labels: Tensor  #: (N,)
    lengths: tuple[int, ...]  #: tokens of each completion, first then second
    rows: int  #: completions of the first
    eager_rows: int  #: completions whose log-probability is expected to be differentiated
    contrast: Tensor | None  #: (N_second,) contrast ids to use, or
    uniforms: Tensor | None  #: (N_second,) numbers to sample them with; neither: no contrast
    k: int
    chunk: int  #: tokens per chunk
    dtype: torch.dtype  #: of the matrix products
    grad: bool  #: whether there will be a backward

    @property
    def split(self) -> int:
        """Number of tokens of the first."""
        return sum(self.lengths[: self.rows])

    @property
    def eager_tokens(self) -> int:
        return sum(self.lengths[: self.eager_rows])

    def chunks(self) -> Iterator[slice]:
        total = self.labels.numel()
        for start in range(0, total, self.chunk):
            yield slice(start, min(start + self.chunk, total))

    def parts(self, tokens: slice) -> tuple[slice, slice]:
        """The same tokens, counted within the first and within the second."""
        split = self.split
        return (
            slice(min(tokens.start, split), min(tokens.stop, split)),
            slice(max(tokens.start - split, 0), max(tokens.stop - split, 0)),
        )

    def hidden(self, first: Tensor, second: Tensor, tokens: slice) -> Tensor:
        """Hidden states (n, D) of some tokens, gathered chunk by chunk: no compacted copy of all."""
        a, b = self.parts(tokens)
        return torch.cat([first[self.positions[0][a]], second[self.positions[1][b]]]).to(self.dtype)

    def span(self, row: int) -> slice:
        """The tokens of one completion."""
        start = sum(self.lengths[:row])
        return slice(start, start + self.lengths[row])

    def after(self, row: int, start: int) -> slice:
        """The tokens of one completion from token `start` of all on."""
        span = self.span(row)
        return slice(max(span.start, start), max(span.stop, start))

    def only(self, rows: list[int], start: int) -> tuple["Work", Tensor]:
        """The work of some completions alone, from token `start` on, and where its tokens stood."""
        spans = [self.after(row, start) for row in rows]
        lengths = tuple(span.stop - span.start for span in spans)
        ids = torch.cat([torch.arange(s.start, s.stop, device=self.labels.device) for s in spans])
        first = sum(row < self.rows for row in rows)
        split = sum(lengths[:first])
        positions = self.positions[0][ids[:split]], self.positions[1][ids[split:] - self.split]
        work = replace(self, positions=positions, labels=self.labels[ids], lengths=lengths, rows=first)
        return work, ids
