"""The forward of the fused core: scores of all tokens, and gradients as far as they can be known."""

import torch
from torch import Tensor

from pco.losses._fused.call import Call, put, residual_of
from pco.losses._fused.gradients import NOTHING, Ahead, HeadGrad, rows_to_keep
from pco.losses._fused.work import Work
from pco.losses.contrast import pick_contrast


def prepare(call: Call, with_hidden: bool, with_head: bool) -> Ahead:
    """Empty sums for what the forward computes ahead."""
    work = call.work
    first = torch.zeros_like(call.first) if with_hidden else None
    both = with_hidden and work.eager_rows > work.rows
    second = torch.zeros_like(call.second) if both else None
    if not with_head:
        return Ahead((first, second), {}, 0)
    retained = min(work.chunk, work.eager_tokens)
    spans = [work.after(row, retained) for row in range(work.eager_rows)]
    kept = rows_to_keep([span.stop - span.start for span in spans], work.chunk, *call.weight.shape)
    head = {row: HeadGrad.zeros(rows, call.weight, call.bias, call.dtype) for row, rows in kept.items()}
    return Ahead((first, second), head, retained)


def score(call: Call, ahead: Ahead) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Log-probability and log-sum-exp (N,) of each token, gaps and contrast ids (N_2,), residuals to retain."""
    work = call.work
    count = work.labels.numel()
    eager_tokens = 0 if ahead is NOTHING else work.eager_tokens
    logps, norms = call.new(count), call.new(count)
    gaps = call.new(count - work.split).zero_()
    contrast = work.labels[work.split :].clone() if work.contrast is None else work.contrast.clone()
    buffer = call.new(min(work.chunk, count), call.vocab)
    residual: Tensor | None = None
    # Backwards: the chunk that remains in the buffer is then one that the backward needs.
    for tokens in reversed(list(work.chunks())):
        hidden = call.hidden(tokens)
        logits = call.logits(hidden, 0, buffer)
        _, tail = work.parts(tokens)
        if tail.stop > tail.start:
            gaps[tail], contrast[tail] = _gaps(work, logits[tail.start - tail.stop :], tail)
        eager = max(min(tokens.stop, eager_tokens) - tokens.start, 0)
        logps[tokens], norms[tokens] = _normalize(logits, work.labels[tokens], eager)
        if eager:
            eager_part = slice(tokens.start, tokens.start + eager)
            residual = _take_ahead(call, ahead, eager_part, hidden, logits[:eager])
    return logps, norms, gaps, contrast, residual if ahead.retained else None


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


def _take_ahead(call: Call, ahead: Ahead, tokens: slice, hidden: Tensor, probs: Tensor) -> Tensor:
    """Add a chunk of tokens to the sums. Turns their probabilities into the residuals that it returns."""
    work = call.work
    residual = residual_of(probs, work.labels[tokens]).to(work.dtype)
    if ahead.hidden[0] is not None:
        put(work, tokens, residual @ call.head, ahead.hidden)
    for row, grad in ahead.head.items():
        span = work.after(row, ahead.retained)
        start, stop = max(span.start, tokens.start), min(span.stop, tokens.stop)
        if start < stop:
            inside = slice(start - tokens.start, stop - tokens.start)
            grad.add(residual[inside, : len(grad.weight)], hidden[inside])
    return residual
