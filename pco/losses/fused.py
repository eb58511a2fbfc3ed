"""Log-probabilities of completions straight from hidden states and the head, chunk by chunk."""

from torch import Tensor

from pco.losses._fused.scores import fused_scores
from pco.losses.checks import check_hidden


def fused_logps(
    hidden: Tensor,
    labels: Tensor,
    head_weight: Tensor,
    *,
    head_bias: Tensor | None = None,
    chunk_tokens: int | None = None,
) -> Tensor:
    """`completion_logps` from hidden states and the head, never holding (tokens, V) logits.

    Differentiable: the core of DPO, IPO and SFT. Without gradients (under `torch.no_grad`, or where
    nothing requires any) it costs one matrix product.

    Args:
        hidden: (B, T, D) last hidden states, after the final norm.
        labels: (B, T) token ids, -100 where ignored.
        head_weight: (V, D).
        head_bias: (V,).
        chunk_tokens: tokens per chunk. Beyond its gradients, a call holds up to twice
            `chunk_tokens * V` numbers. By default as many tokens as make 2^26 logits (256 MiB).

    Returns:
        (B,) in nats, float32 (float64 for float64 input). 0 for a row without tokens.

    Raises:
        ValueError: shapes that do not fit, or a label outside the vocabulary.

    """
    check_hidden("hidden", hidden, labels, head_weight, head_bias)
    none = hidden.new_empty(0, 0, hidden.shape[-1])
    scores = fused_scores(
        hidden,
        labels,
        none,
        labels.new_empty(0, 0),
        head_weight,
        head_bias,
        chunk_tokens=chunk_tokens,
    )
    return scores.chosen_logps
