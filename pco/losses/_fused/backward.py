"""The backward of the fused core: scales what the forward has computed ahead, and computes the rest."""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from pco.losses._fused.call import Call, per_token, put, residual_of
from pco.losses._fused.gradients import Ahead, HeadGrad


@dataclass(frozen=True)
class Sums:
    """The gradients, growing in place."""

    hidden: tuple[Tensor | None, Tensor | None]
    head: HeadGrad | None


@dataclass(frozen=True)
class Part:
    """Completions of which something is still to be computed."""

    rows: list[int]
    after: int  #: leaving out so many tokens of all
    start: int  #: the first row of the head whose gradient is missing
    with_hidden: bool


def factors_of(call: Call, first_grad: Tensor | None, second_grad: Tensor | None) -> Tensor:
    """What multiplies each completion's residuals: minus the gradient of its log-probability."""
    work = call.work
    factors = call.new(len(work.lengths)).zero_()
    if first_grad is not None:
        factors[: work.rows] = -first_grad
    if second_grad is not None:
        factors[work.rows :] = -second_grad
    return factors


def scale_ahead(call: Call, ahead: Ahead, factors: Tensor, with_hidden: bool, with_head: bool) -> Sums:
    """The gradients as far as they were computed ahead, taking over their memory."""
    work = call.work
    weights = per_token(work, factors)
    tokens = weights[: work.split], weights[work.split :]
    hidden: list[Tensor | None] = [None, None]
    for side, value in enumerate((call.first, call.second)):
        done = ahead.hidden[side]
        if done is not None:
            scale = call.new(len(done)).zero_()
            scale[work.positions[side]] = tokens[side]
            hidden[side] = done.mul_(scale.unsqueeze(1))
        elif with_hidden:
            hidden[side] = torch.zeros_like(value)
    return Sums((hidden[0], hidden[1]), _scale_head(call, ahead, factors) if with_head else None)


def _scale_head(call: Call, ahead: Ahead, factors: Tensor) -> HeadGrad:
    if not ahead.head:
        return HeadGrad.zeros(call.vocab, call.weight, call.bias, call.dtype)
    free, *others = ahead.head
    total = ahead.head[free]
    total.scale(factors[free])
    for row in others:
        total.add_scaled(ahead.head[row], factors[row])
    return total


def missing(call: Call, ahead: Ahead, factors: Tensor, sums: Sums) -> list[Part]:
    """What was not computed ahead, of the completions that count at all."""
    work = call.work
    groups: dict[tuple[int, bool], list[int]] = defaultdict(list)
    for row, factor in enumerate(factors.tolist()):
        side = int(row >= work.rows)
        with_hidden = sums.hidden[side] is not None and ahead.hidden[side] is None
        start = len(ahead.head[row].weight) if row in ahead.head else 0
        start = start if sums.head else call.vocab
        span = work.after(row, ahead.retained)
        if factor != 0 and span.start < span.stop and (with_hidden or start < call.vocab):
            groups[0 if with_hidden else start, with_hidden].append(row)
    return [Part(rows, ahead.retained, *key) for key, rows in groups.items()]


def recompute(call: Call, part: Part, norms: Tensor, factors: Tensor, sums: Sums) -> None:
    """Add what is missing of some completions, from logits computed anew."""
    work, ids = call.work.only(part.rows, part.after)
    norms, weights = norms[ids], per_token(call.work, factors)[ids]
    buffer = call.new(min(work.chunk, len(ids)), call.vocab - part.start)
    for tokens in work.chunks():
        hidden = call.hidden(tokens, work)
        probs = call.logits(hidden, part.start, buffer).sub_(norms[tokens].unsqueeze(1)).exp_()
        residual = residual_of(probs, work.labels[tokens] - part.start).to(work.dtype)
        if part.with_hidden:
            put(work, tokens, (residual @ call.head) * weights[tokens].unsqueeze(1), sums.hidden)
        if sums.head:
            sums.head.rows_from(part.start).add(residual, hidden, weights[tokens])


def add_gaps(call: Call, contrast: Tensor, grads: Tensor, sums: Sums) -> None:
    """Add the gradients of s[n] - s[c], which touch two rows of the head per token."""
    work = call.work
    for start in range(0, len(contrast), work.chunk):
        tokens = slice(start, start + work.chunk)
        negatives, ids = work.labels[work.split :][tokens], contrast[tokens]
        positions, factor = work.positions[1][tokens], grads[tokens].unsqueeze(1)
        if sums.hidden[1] is not None:
            rows = (call.weight[negatives] - call.weight[ids]).to(call.dtype) * factor
            sums.hidden[1].index_add_(0, positions, rows.to(call.second.dtype))
        if sums.head is None:
            continue
        hidden = call.second[positions].to(call.dtype) * factor
        sums.head.weight.index_add_(0, negatives, hidden).index_add_(0, ids, hidden, alpha=-1)
        if sums.head.bias is not None:
            sums.head.bias.index_add_(0, negatives, grads[tokens])
            sums.head.bias.index_add_(0, ids, grads[tokens], alpha=-1)
