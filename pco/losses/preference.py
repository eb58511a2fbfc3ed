"""Preference losses on log-probabilities of whole completions: DPO and IPO."""

from torch import Tensor
from torch.nn import functional as F

from pco.losses.checks import check_number, check_same_rows, wide


def dpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Direct preference optimization (arXiv 2305.18290, equation 7), per pair.

    With h = (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected), the loss is
    `-(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)`, e = `label_smoothing` being the assumed
    share of pairs labelled the wrong way round (conservative DPO).

    Args:
        policy_chosen: (B,) log-probability of the chosen completion in nats, summed over its tokens.
        policy_rejected: (B,) the same of the rejected completion.
        ref_chosen: (B,) the same under the reference.
        ref_rejected: (B,) the same under the reference.
        beta: strength of the pull to the reference, > 0.
        label_smoothing: 0 <= e < 0.5.

    Returns:
        (B,), float32 (float64 for float64 input).

    Raises:
        ValueError: shapes other than one (B,), beta <= 0, or label_smoothing outside [0, 0.5).

    """
    check_number("beta", beta, above=0)
    check_number("label_smoothing", label_smoothing, least=0)
    if label_smoothing >= 0.5:
        raise ValueError(
            f"label_smoothing must be below 0.5, got {label_smoothing!r}: at 0.5 the labels say "
            f"nothing; swap chosen and rejected if they are more often wrong than right"
        )
    logit = beta * _log_ratio(policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    return -(1 - label_smoothing) * F.logsigmoid(logit) - label_smoothing * F.logsigmoid(-logit)


def ipo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
) -> Tensor:
    """Identity preference optimization (arXiv 2310.12036, equation 17; beta is its tau), per pair.

    `(h - 1 / (2 beta))^2` with h as in `dpo`. Hand in log-probabilities divided by their number of
    tokens for the variant that does not grow with length.

    Shapes, dtypes and errors as in `dpo`.
    """
    check_number("beta", beta, above=0)
    ratio = _log_ratio(policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    return (ratio - 1 / (2 * beta)).square()


def _log_ratio(policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
    check_same_rows(
        policy_chosen=policy_chosen,
        policy_rejected=policy_rejected,
        ref_chosen=ref_chosen,
        ref_rejected=ref_rejected,
    )
    dtype = wide(policy_chosen.dtype)
    policy = policy_chosen.to(dtype) - policy_rejected.to(dtype)
    return policy - (ref_chosen.to(dtype) - ref_rejected.to(dtype))
