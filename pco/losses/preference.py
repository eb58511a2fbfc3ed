"""Preference losses on log-probabilities of whole completions: DPO, IPO, SimPO.

To add one: write its function here and name it in `__all__`, which makes it public in `pco.losses`; then
`pco/config/train.py` has its settings and `pco/training/objective.py` the `match` that calls it.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from pco.losses.checks import check_number, check_same_rows, wide

__all__ = ["PairLogps", "dpo", "ipo", "simpo"]


@dataclass(frozen=True)
class PairLogps:
    """Log-probabilities of the completions of B pairs: what a loss of your own is called with (docs/losses.md)."""

    chosen: Tensor  #: (B,) log-probability of the chosen completion in nats, summed over its tokens
    rejected: Tensor  #: (B,) the same of the rejected completion
    chosen_tokens: Tensor  #: (B,) tokens of the chosen completion in the same dtype, at least 1: safe to divide by
    rejected_tokens: Tensor  #: (B,) the same of the rejected completion
    ref_chosen: Tensor | None = None  #: (B,) as `chosen` under the reference; None for a loss without one
    ref_rejected: Tensor | None = None  #: (B,) as `rejected` under the reference


def dpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    tokens: tuple[Tensor, Tensor] | None = None,
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
        tokens: numbers of tokens (B,) of the chosen and of the rejected completions. Each difference in h is then
            divided by its completion's: length-normalised DPO (arXiv 2411.15124, equation 6). A completion without
            tokens counts as one of 1 token.

    Returns:
        (B,), float32 (float64 for float64 input).

    Raises:
        ValueError: shapes other than one (B,), beta <= 0, or label_smoothing outside [0, 0.5).

    """
    check_number("beta", beta, above=0)
    ratio = _log_ratio(policy_chosen, policy_rejected, ref_chosen, ref_rejected, tokens)
    return _smoothed(beta * ratio, label_smoothing)


def ipo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    tokens: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Identity preference optimization (arXiv 2310.12036, equation 17; beta is its tau), per pair.

    `(h - 1 / (2 beta))^2` with h as in `dpo`. With `tokens` each difference in h is divided by its completion's: the
    form that does not grow with length, with which its authors made the paper's results (so TRL's `DPOTrainer` says,
    whose IPO this is).

    Shapes, dtypes and errors as in `dpo`.
    """
    check_number("beta", beta, above=0)
    ratio = _log_ratio(policy_chosen, policy_rejected, ref_chosen, ref_rejected, tokens)
    return (ratio - 1 / (2 * beta)).square()


def simpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    *,
    tokens: tuple[Tensor, Tensor],
    beta: float,
    gamma: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Simple preference optimization (arXiv 2405.14734, equation 6), per pair; it has no reference.

    With m = beta * (policy_chosen / |chosen| - policy_rejected / |rejected|) - gamma, the loss is
    `-(1 - e) log sigmoid(m) - e log sigmoid(-m)`, e = `label_smoothing`.

    Args:
        policy_chosen: (B,) log-probability of the chosen completion in nats, summed over its tokens.
        policy_rejected: (B,) the same of the rejected completion.
        tokens: numbers of tokens (B,) of the chosen and of the rejected completions. A completion without tokens
            counts as one of 1 token, so its mean is 0.
        beta: scale of the mean log-probabilities, > 0.
        gamma: the margin asked for, >= 0, in the unit of beta times nats a token, as in the paper. Code that asks for
            the ratio gamma / beta means `gamma = ratio * beta`.
        label_smoothing: 0 <= e < 0.5, as in `dpo`.

    Returns:
        (B,), float32 (float64 for float64 input).

    Raises:
        ValueError: shapes other than one (B,), beta <= 0, gamma < 0, or label_smoothing outside [0, 0.5).

    """
    check_number("beta", beta, above=0)
    check_number("gamma", gamma, least=0)
    check_same_rows(
        policy_chosen=policy_chosen,
        policy_rejected=policy_rejected,
        chosen_tokens=tokens[0],
        rejected_tokens=tokens[1],
    )
    margin = _per_token(policy_chosen, tokens[0]) - _per_token(policy_rejected, tokens[1])
    return _smoothed(beta * margin - gamma, label_smoothing)


def _smoothed(logit: Tensor, label_smoothing: float) -> Tensor:
    """Minus the log-probability that the labels are right, some of which are assumed to be the wrong way round."""
    check_number("label_smoothing", label_smoothing, least=0)
    if label_smoothing >= 0.5:
        raise ValueError(
            f"label_smoothing must be below 0.5, got {label_smoothing!r}: at 0.5 the labels say "
            f"nothing; swap chosen and rejected if they are more often wrong than right"
        )
    return -(1 - label_smoothing) * F.logsigmoid(logit) - label_smoothing * F.logsigmoid(-logit)


def _log_ratio(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    tokens: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """The h of `dpo`; with `tokens`, each completion's part divided by its own."""
    counts = {} if tokens is None else {"chosen_tokens": tokens[0], "rejected_tokens": tokens[1]}
    check_same_rows(
        policy_chosen=policy_chosen,
        policy_rejected=policy_rejected,
        ref_chosen=ref_chosen,
        ref_rejected=ref_rejected,
        **counts,
    )
    dtype = wide(policy_chosen.dtype)
    if tokens is None:
        policy = policy_chosen.to(dtype) - policy_rejected.to(dtype)
        return policy - (ref_chosen.to(dtype) - ref_rejected.to(dtype))
    chosen = policy_chosen.to(dtype) - ref_chosen.to(dtype)
    rejected = policy_rejected.to(dtype) - ref_rejected.to(dtype)
    return _per_token(chosen, tokens[0]) - _per_token(rejected, tokens[1])


def _per_token(logps: Tensor, tokens: Tensor) -> Tensor:
    # At least 1: an empty completion has the log-probability 0, and 0 / 0 is no mean.
    return logps.to(wide(logps.dtype)) / tokens.clamp(min=1)
