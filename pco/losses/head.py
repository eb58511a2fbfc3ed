"""The fused core: one pass over the tokens in the forward, as little recomputation as possible after.

With p = softmax of a token's logits and r = p - onehot(label), the gradient of a completion's
log-probability is, up to its sign, `r @ W` for each hidden state and `sum r h^T` for the head. The
loss multiplies both by one number per completion, which is known only after all log-probabilities are.
So the forward computes them without that number ("ahead"), while the chunk of p is at hand, and the
backward scales them. For the hidden states this is free: the results have the size of the gradient.
A head gradient takes (V, D) per completion. One is free, since it becomes the gradient in the end;
of the others as many rows of the head are kept as fit into a budget, and the rest is recomputed.

The contrast gap s[n] - s[c] is linear in two rows of the head: neither pass needs the vocabulary.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pco.losses.checks import wide
from pco.losses.contrast import pick_contrast
from pco.losses.gradients import NOTHING, Ahead, HeadGrad, matmul_into, rows_to_keep
from pco.losses.work import Work


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


class HeadScores(torch.autograd.Function):
    """Log-probabilities and contrast gaps from (T_1, D) and (T_2, D) hidden states and the head.

    Returns log-probabilities per completion (R_1,) and (R_2,), gaps and contrast ids per token of the
    second (N_2,).
    """

    @staticmethod
    def forward(
        ctx: Any, first: Tensor, second: Tensor, weight: Tensor, bias: Tensor | None, work: Work
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        with torch.autocast(weight.device.type, enabled=False):
            call = Call.of(first, second, weight, bias, work)
            ahead = _prepare(call, *_wanted(ctx)) if work.grad and any(_wanted(ctx)) else NOTHING
            logps, norms, gaps, contrast = _score(call, ahead)
        # The weight is saved as the parameter that it is: under ZeRO-3 it is gathered again for the
        # backward. What was computed ahead is no saved tensor, because the backward uses it up.
        ctx.save_for_backward(first, second, weight, bias, norms)
        ctx.work, ctx.ahead, ctx.contrast = work, ahead, contrast.clone()
        ctx.mark_non_differentiable(contrast)
        parts = [part.sum() for part in torch.split(logps, list(work.lengths))] if work.lengths else []
        sums = torch.stack(parts) if parts else logps.new_zeros(0)
        return sums[: work.rows].clone(), sums[work.rows :].clone(), gaps, contrast

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        first_grad: Tensor | None,
        second_grad: Tensor | None,
        gap_grad: Tensor | None,
        _contrast_grad: None,
    ) -> tuple[Tensor | None, ...]:
        first, second, weight, bias, norms = ctx.saved_tensors
        # Scaled in place below. A second backward through the same graph recomputes everything.
        ahead, ctx.ahead = ctx.ahead, NOTHING
        with torch.autocast(weight.device.type, enabled=False):
            call = Call.of(first, second, weight, bias, ctx.work)
            factors = _factors(call, first_grad, second_grad)
            sums = _scale(call, ahead, factors, *_wanted(ctx))
            for part in _missing(call, ahead, factors, sums):
                _recompute(call, part, norms, factors, sums)
            if gap_grad is not None:
                _add_gaps(call, ctx.contrast, gap_grad, sums)
        grads = *sums.hidden, *((sums.head.weight, sums.head.bias) if sums.head else (None, None))
        inputs = first, second, weight, bias
        return *(
            grad.to(value.dtype) if need and grad is not None and value is not None else None
            for grad, value, need in zip(grads, inputs, ctx.needs_input_grad, strict=False)
        ), None


head_scores: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]] = HeadScores.apply


def _wanted(ctx: Any) -> tuple[bool, bool]:
    """Whether the hidden states, and whether the head, need gradients."""
    return any(ctx.needs_input_grad[:2]), any(ctx.needs_input_grad[2:4])


# The forward.


def _prepare(call: Call, with_hidden: bool, with_head: bool) -> Ahead:
    """Empty sums for what the forward computes ahead."""
    work = call.work
    first = torch.zeros_like(call.first) if with_hidden else None
    both = with_hidden and work.eager_rows > work.rows
    second = torch.zeros_like(call.second) if both else None
    kept = rows_to_keep(work, *call.weight.shape) if with_head else {}
    head = {row: HeadGrad.zeros(rows, call.weight, call.bias, call.dtype) for row, rows in kept.items()}
    return Ahead((first, second), head)


def _score(call: Call, ahead: Ahead) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probability and log-sum-exp (N,) of each token, gaps and contrast ids (N_2,)."""
    work = call.work
    count = work.labels.numel()
    eager_tokens = 0 if ahead is NOTHING else work.eager_tokens
    logps, norms = call.new(count), call.new(count)
    gaps = call.new(count - work.split).zero_()
    contrast = work.labels[work.split :].clone() if work.contrast is None else work.contrast.clone()
    buffer = call.new(min(work.chunk, count), call.vocab)
    for tokens in work.chunks():
        hidden = call.hidden(tokens)
        logits = call.logits(hidden, 0, buffer)
        _, tail = work.parts(tokens)
        if tail.stop > tail.start:
            gaps[tail], contrast[tail] = _gaps(work, logits[tail.start - tail.stop :], tail)
        eager = max(min(tokens.stop, eager_tokens) - tokens.start, 0)
        logps[tokens], norms[tokens] = _normalize(logits, work.labels[tokens], eager)
        if eager:
            _take_ahead(call, ahead, slice(tokens.start, tokens.start + eager), hidden, logits[:eager])
    return logps, norms, gaps, contrast


def _gaps(work: Work, logits: Tensor, tail: slice) -> tuple[Tensor, Tensor]:
    """s[n] - s[c] and c for some tokens of the second, given their logits."""
    negatives = work.labels[work.split :][tail]
    if work.contrast is not None:
        ids = work.contrast[tail]
    elif work.uniforms is not None:
        ids = pick_contrast(logits, negatives, work.uniforms[tail], work.k)
    else:
        ids = negatives
    both = logits.gather(1, torch.stack([negatives, ids], dim=1))
    return both[:, 0] - both[:, 1], ids


def _normalize(logits: Tensor, labels: Tensor, eager: int) -> tuple[Tensor, Tensor]:
    """Log-probability and log-sum-exp of each token. Overwrites the logits, the first `eager` rows with probabilities.

    A second tensor of this size would cost more than all the arithmetic here.
    """
    target = logits.gather(1, labels.unsqueeze(1))
    top = logits.amax(1, keepdim=True)
    total = logits.sub_(top).exp_().sum(1, keepdim=True)
    logits[:eager].div_(total[:eager])
    norm = top + total.log()
    return (target - norm).squeeze(1), norm.squeeze(1)


def _take_ahead(call: Call, ahead: Ahead, tokens: slice, hidden: Tensor, probs: Tensor) -> None:
    """Add a chunk of tokens, given their probabilities (overwritten), to the sums."""
    work = call.work
    residual = _residual(probs, work.labels[tokens]).to(work.dtype)
    if ahead.hidden[0] is not None:
        _put(work, tokens, residual @ call.head, ahead.hidden)
    for row, grad in ahead.head.items():
        span = work.span(row)
        start, stop = max(span.start, tokens.start), min(span.stop, tokens.stop)
        if start < stop:
            inside = slice(start - tokens.start, stop - tokens.start)
            grad.add(residual[inside, : len(grad.weight)], hidden[inside])


def _residual(probs: Tensor, labels: Tensor) -> Tensor:
    """Probabilities minus onehot(labels), in place. A label below 0 lies outside the rows at hand."""
    ones = (labels >= 0).to(probs.dtype).unsqueeze(1)
    return probs.scatter_add_(1, labels.clamp(min=0).unsqueeze(1), -ones)


def _put(work: Work, tokens: slice, rows: Tensor, targets: tuple[Tensor | None, Tensor | None]) -> None:
    """Add rows (n, D) to where their tokens lie in first and second."""
    parts = work.parts(tokens)
    pieces = torch.split(rows, [part.stop - part.start for part in parts])
    for target, positions, part, piece in zip(targets, work.positions, parts, pieces, strict=True):
        if target is not None and len(piece):
            target.index_add_(0, positions[part], piece.to(target.dtype))


# The backward.


@dataclass(frozen=True)
class Sums:
    """The gradients, growing in place."""

    hidden: tuple[Tensor | None, Tensor | None]
    head: HeadGrad | None


@dataclass(frozen=True)
class Part:
    """Completions of which something is still to be computed."""

    rows: list[int]
    start: int  #: the first row of the head whose gradient is missing
    with_hidden: bool


def _factors(call: Call, first_grad: Tensor | None, second_grad: Tensor | None) -> Tensor:
    """What multiplies each completion's residuals: minus the gradient of its log-probability."""
    work = call.work
    factors = call.new(len(work.lengths)).zero_()
    if first_grad is not None:
        factors[: work.rows] = -first_grad
    if second_grad is not None:
        factors[work.rows :] = -second_grad
    return factors


def _per_token(work: Work, factors: Tensor) -> Tensor:
    lengths = torch.tensor(work.lengths, device=factors.device)
    return factors.repeat_interleave(lengths, output_size=work.labels.numel())


def _scale(call: Call, ahead: Ahead, factors: Tensor, with_hidden: bool, with_head: bool) -> Sums:
    """The gradients as far as they were computed ahead, taking over their memory."""
    work = call.work
    weights = _per_token(work, factors)
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


def _missing(call: Call, ahead: Ahead, factors: Tensor, sums: Sums) -> list[Part]:
    """What was not computed ahead, of the completions that count at all."""
    work = call.work
    groups: dict[tuple[int, bool], list[int]] = defaultdict(list)
    for row, factor in enumerate(factors.tolist()):
        side = int(row >= work.rows)
        with_hidden = sums.hidden[side] is not None and ahead.hidden[side] is None
        start = len(ahead.head[row].weight) if row in ahead.head else 0
        start = start if sums.head else call.vocab
        if factor != 0 and work.lengths[row] and (with_hidden or start < call.vocab):
            groups[0 if with_hidden else start, with_hidden].append(row)
    return [Part(rows, *key) for key, rows in groups.items()]


def _recompute(call: Call, part: Part, norms: Tensor, factors: Tensor, sums: Sums) -> None:
    """Add what is missing of some completions, from logits computed anew."""
    work, ids = call.work.only(part.rows)
    norms, weights = norms[ids], _per_token(call.work, factors)[ids]
    buffer = call.new(min(work.chunk, len(ids)), call.vocab - part.start)
    for tokens in work.chunks():
        hidden = call.hidden(tokens, work)
        probs = call.logits(hidden, part.start, buffer).sub_(norms[tokens].unsqueeze(1)).exp_()
        residual = _residual(probs, work.labels[tokens] - part.start).to(work.dtype)
        if part.with_hidden:
            _put(work, tokens, (residual @ call.head) * weights[tokens].unsqueeze(1), sums.hidden)
        if sums.head:
            sums.head.rows_from(part.start).add(residual, hidden, weights[tokens])


def _add_gaps(call: Call, contrast: Tensor, grads: Tensor, sums: Sums) -> None:
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
