"""Log-odds of tokens, from hidden states and the head in chunks: what unlikelihood needs of a rejected completion.

With `o = s[n] - logsumexp(s without n)` the probability of token n is sigmoid(o). So log p and log(1 - p) both come
exactly from o, where log(1 - exp(log p)) has no digits left as p nears 1.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pco.losses._fused.call import Call, put, residual_of
from pco.losses._fused.gradients import HeadGrad
from pco.losses._fused.work import Work


class LogOdds(torch.autograd.Function):
    """Log-odds (N,) of the labels, from (T, D) hidden states and the head. The backward computes the logits anew."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, work: Work) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            call = _call(hidden, weight, bias, work)
            odds, others = (call.new(work.labels.numel()) for _ in ("odds", "others"))
            buffer = _buffer(call)
            for tokens in work.chunks():
                logits, labels = call.logits(call.hidden(tokens), 0, buffer), work.labels[tokens].unsqueeze(1)
                target = logits.gather(1, labels).squeeze(1)
                top = logits.scatter_(1, labels, -torch.inf).amax(1, keepdim=True)
                others[tokens] = logits.sub_(top).exp_().sum(1).log_().add_(top.squeeze(1))
                odds[tokens] = target - others[tokens]
        ctx.save_for_backward(hidden, weight, bias, others)  # under ZeRO-3 the weight is gathered again
        ctx.work = work
        return odds

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, odds_grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, others = ctx.saved_tensors
        work, (with_hidden, *with_head) = ctx.work, ctx.needs_input_grad[:3]
        with torch.autocast(weight.device.type, enabled=False):
            call = _call(hidden, weight, bias, work)
            of_hidden = torch.zeros_like(hidden) if with_hidden else None
            of_head = HeadGrad.zeros(call.vocab, weight, bias, call.dtype) if any(with_head) else None
            buffer = _buffer(call)
            for tokens in work.chunks():
                inputs, labels = call.hidden(tokens), work.labels[tokens]
                logits = call.logits(inputs, 0, buffer).scatter_(1, labels.unsqueeze(1), -torch.inf)
                probs = logits.sub_(others[tokens].unsqueeze(1)).exp_()
                residual, factor = residual_of(probs, labels).to(work.dtype), -odds_grad[tokens]
                put(work, tokens, (residual @ call.head) * factor.unsqueeze(1), (of_hidden, None))
                if of_head is not None:
                    of_head.add(residual, inputs, factor)
        grads = of_hidden, *((of_head.weight, of_head.bias) if of_head else (None, None))
        return *(
            grad.to(value.dtype) if need and grad is not None and value is not None else None
            for grad, value, need in zip(grads, (hidden, weight, bias), ctx.needs_input_grad, strict=False)
        ), None


log_odds: Callable[[Tensor, Tensor, Tensor | None, Work], Tensor] = LogOdds.apply


def _call(hidden: Tensor, weight: Tensor, bias: Tensor | None, work: Work) -> Call:
    return Call.of(hidden, hidden[:0], weight, bias, work)


def _buffer(call: Call) -> Tensor:
    return call.new(min(call.work.chunk, call.work.labels.numel()), call.vocab)
