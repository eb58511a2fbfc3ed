"""Sampling of the contrast token of the Cringe loss (arXiv 2211.05826)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pco.losses.checks import IGNORE, Generators, check_k, check_labels, check_range, check_scores

# Width of the blocks of the two-level search. 128 keeps the first level one vectorised pass.
BLOCK = 128


@torch.no_grad()
def sample_contrast(logits: Tensor, negatives: Tensor, *, k: int, generator: Generators = None) -> Tensor:
    """Draw for each negative token a contrast token from the model's own top k without it.

    The k candidates are the tokens with the largest logits other than the negative one. One is drawn
    from the softmax restricted to them. Nothing here is differentiated.

    One uniform number is drawn per token that counts, row by row, so padding and the split into
    micro-batches leave the ids unchanged as long as a CPU generator meets the tokens in the same
    order. With one generator per row even that order does not matter.

    Args:
        logits: (B, T, V).
        negatives: (B, T) token ids of the rejected completions, -100 where ignored.
        k: number of candidates, 1 <= k <= V - 1.
        generator: a `torch.Generator`, or a sequence of B of them (row i draws from its own), or None
            for torch's default CPU generator. Numbers are drawn on the generator's device.

    Returns:
        (B, T) token ids, -100 where `negatives` is.

    Raises:
        ValueError: k < 1 or k >= V, a negative token outside the vocabulary, shapes that do not fit,
            or a number of generators other than B.

    """
    check_scores("logits", logits, "V")
    check_labels("negatives", negatives, tuple(logits.shape), "logits")
    check_k(k, logits.shape[-1])
    mask = negatives != IGNORE
    check_range("negatives", negatives[mask], logits.shape[-1])
    uniforms = draw_uniforms(mask, generator)
    scores, ids = largest(logits, k + 1)
    contrast = torch.full_like(negatives, IGNORE, dtype=torch.int64)
    contrast[mask] = _pick(scores[mask], ids[mask], negatives[mask], uniforms)
    return contrast


def draw_uniforms(mask: Tensor, generator: Generators) -> Tensor:
    """One number in [0, 1) for each true position of `mask` (B, T), row by row: (N,) on its device.

    float64, whatever the logits: so the ids do not depend on the dtype of the model.
    """
    if isinstance(generator, Sequence):
        counts = mask.sum(-1).tolist()
        if len(generator) != len(counts):
            raise ValueError(
                f"got {len(generator)} generators for {len(counts)} rows: pass one per row, or a single one"
            )
        drawn = [_uniform(n, own) for n, own in zip(counts, generator, strict=True)]
        return torch.cat(drawn) if drawn else torch.empty(0, dtype=torch.float64, device=mask.device)
    return _uniform(int(mask.sum()), generator).to(mask.device)


def _uniform(count: int, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else "cpu"
    return torch.rand(count, generator=generator, device=device, dtype=torch.float64)


def pick_contrast(logits: Tensor, negatives: Tensor, uniforms: Tensor, k: int) -> Tensor:
    """The contrast ids (N,) for logits (N, V), negatives (N,) and uniform numbers (N,)."""
    return _pick(*largest(logits, k + 1), negatives, uniforms)


def largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Values and ids of the `count` largest of the last dimension, as `torch.topk` returns them.

    Over a large vocabulary, first the largest of each block: the `count` largest entries lie within
    the `count` blocks with the largest maxima. That is a vectorised pass over the logits in place of
    a selection over all of them (4x faster on a CPU at 128k tokens).
    """
    vocab = scores.shape[-1]
    blocks = vocab // BLOCK
    if count * 8 > blocks:
        return scores.topk(count, dim=-1)
    whole = blocks * BLOCK
    maxima = scores[..., :whole].view(*scores.shape[:-1], blocks, BLOCK).amax(-1)
    first = maxima.topk(count, dim=-1).indices * BLOCK
    offsets = torch.arange(BLOCK, device=scores.device)
    inside = (first.unsqueeze(-1) + offsets).flatten(-2)
    rest = torch.arange(whole, vocab, device=scores.device).expand(*inside.shape[:-1], -1)
    ids = torch.cat([inside, rest], dim=-1)
    best = scores.gather(-1, ids).topk(count, dim=-1)
    return best.values, ids.gather(-1, best.indices)


def _pick(scores: Tensor, ids: Tensor, negatives: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse CDF over the k candidates among the k + 1 largest `scores` (N, k + 1) with their `ids`."""
    is_negative = ids == negatives.unsqueeze(-1)
    # A negative among the k + 1 leaves; if none is there, the smallest (the last) leaves instead.
    drop = is_negative.clone()
    drop[:, -1] |= ~is_negative.any(-1)
    # In the order of ids, not of scores: two nearly equal scores may change places by rounding
    # between batch shapes, and would then exchange their halves of [0, 1).
    ids, order = ids.sort(dim=-1)
    scores = scores.double().masked_fill(drop, -torch.inf).gather(-1, order)
    cumulative = torch.softmax(scores, dim=-1).cumsum(dim=-1)
    # The first entry above u * total has a probability above 0, so a dropped one is never drawn.
    threshold = uniforms.unsqueeze(-1) * cumulative[:, -1:]
    chosen = (cumulative <= threshold).sum(dim=-1, keepdim=True)
    return ids.gather(-1, chosen.clamp(max=ids.shape[-1] - 1)).squeeze(-1)
