"""The fused core: one pass over the tokens in the forward, as little recomputation as possible after.

With p = softmax of a token's logits and r = p - onehot(label), the gradient of a completion's
log-probability is, up to its sign, `r @ W` for each hidden state and `sum r h^T` for the head. The
loss multiplies both by one number per completion, which is known only after all log-probabilities are.
So the forward computes them without that number ("ahead"), while the chunk of p is at hand, and the
backward scales them. For the hidden states this is free: the results have the size of the gradient.
A head gradient takes (V, D) per completion. One is free, since it becomes the gradient in the end;
of the others as many rows of the head are kept as fit into a budget, and the rest is recomputed. The chunk
visited last needs neither: its probabilities stay in the buffer until the backward has used them.

The contrast gap s[n] - s[c] is linear in two rows of the head: neither pass needs the vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pco.losses._fused.backward import add_gaps, factors_of, missing, recompute, scale_ahead
from pco.losses._fused.call import Call, per_token
from pco.losses._fused.forward import prepare, score
from pco.losses._fused.gradients import NOTHING
from pco.losses._fused.work import Work


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
            ahead = prepare(call, *_wanted(ctx)) if work.grad and any(_wanted(ctx)) else NOTHING
            logps, norms, gaps, contrast, residual = score(call, ahead)
        # The weight is saved as the parameter that it is: under ZeRO-3 it is gathered again for the
        # backward. What was computed ahead is no saved tensor, because the backward uses it up.
        ctx.save_for_backward(first, second, weight, bias, norms)
        ctx.work, ctx.ahead, ctx.residual, ctx.contrast = work, ahead, residual, contrast.clone()
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
        residual, ctx.residual = ctx.residual, None
        with torch.autocast(weight.device.type, enabled=False):
            call = Call.of(first, second, weight, bias, ctx.work)
            factors = factors_of(call, first_grad, second_grad)
            sums = scale_ahead(call, ahead, factors, *_wanted(ctx))
            if sums.head and residual is not None:
                tokens = slice(0, ahead.retained)
                sums.head.add(residual, call.hidden(tokens), per_token(ctx.work, factors)[tokens])
            del residual  # before another chunk of logits is made
            for part in missing(call, ahead, factors, sums):
                recompute(call, part, norms, factors, sums)
            if gap_grad is not None:
                add_gaps(call, ctx.contrast, gap_grad, sums)
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
