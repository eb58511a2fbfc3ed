"""Preference losses against the implementations of two other projects (development dependencies)."""

import pytest
import torch
from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss
from torch import Tensor
from torch.nn.functional import pad
from trl_losses import dpo_trainer_loss, simpo_losses

from pco import losses

BETA = 0.3


def sequences() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states of four completions, two chosen before two rejected, their labels, head, reference."""
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 6, 8, generator=rng, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(20, (4, 6), generator=rng)
    labels[0, 4:] = labels[3, :2] = losses.IGNORE
    head = torch.randn(20, 8, generator=rng, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(4, generator=rng, dtype=torch.float64) - 15
    return hidden, labels, head, reference


def log_probabilities(hidden: Tensor, labels: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
    """Per token, 0 where ignored, and the mask of those that are not."""
    mask = labels != losses.IGNORE
    return (hidden @ head.t()).log_softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1))[..., 0] * mask, mask


def assert_equal_with_gradients(ours: Tensor, theirs: Tensor, leaves: list[Tensor], **tolerance: float) -> None:
    torch.testing.assert_close(ours, theirs, check_dtype=False, **tolerance)
    for our_gradient, their_gradient in zip(
        torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True
    ):
        torch.testing.assert_close(our_gradient, their_gradient, **tolerance)


@pytest.mark.parametrize("kind", ["sigmoid", "ipo"])
def test_dpo_and_ipo_equal_trl_in_value_and_gradient(kind: str) -> None:
    hidden, labels, head, reference = sequences()
    per_token, mask = log_probabilities(hidden, labels, head)
    theirs = dpo_trainer_loss({kind: 1.0}, per_token, mask, reference, beta=BETA)
    policy = losses.fused_logps(hidden, labels, head, chunk_tokens=5)
    function = losses.ipo if kind == "ipo" else losses.dpo
    # TRL's IPO divides by lengths.
    tokens = tuple(mask.sum(-1).chunk(2)) if kind == "ipo" else None
    ours = function(*policy.chunk(2), *reference.chunk(2), beta=BETA, tokens=tokens).mean()
    assert_equal_with_gradients(ours, theirs, [hidden, head])


def test_length_normalised_dpo_equals_trls_sigmoid_norm_in_value_and_gradient() -> None:
    hidden, labels, head, reference = sequences()
    per_token, mask = log_probabilities(hidden, labels, head)
    theirs = dpo_trainer_loss({"sigmoid_norm": 1.0}, per_token, mask, reference, beta=5.0)
    policy = losses.fused_logps(hidden, labels, head, chunk_tokens=5)
    tokens = tuple(mask.sum(-1).chunk(2))
    ours = losses.dpo(*policy.chunk(2), *reference.chunk(2), beta=5.0, tokens=tokens).mean()
    assert_equal_with_gradients(ours, theirs, [hidden, head])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_simpo_equals_trl_in_value_and_gradient(smoothing: float) -> None:
    hidden, labels, head, _ = sequences()
    knobs = {"beta": 2.5, "gamma": 1.4, "label_smoothing": smoothing}
    # TRL drops the last logits and the first label; ours are shifted already.
    theirs = simpo_losses(pad(hidden @ head.t(), (0, 0, 0, 1)), pad(labels, (1, 0)), **knobs)
    policy = losses.fused_logps(hidden, labels, head, chunk_tokens=5)
    tokens = tuple((labels != losses.IGNORE).sum(-1).chunk(2))
    ours = losses.simpo(*policy.chunk(2), tokens=tokens, **knobs)
    torch.testing.assert_close(ours, theirs)
    assert_equal_with_gradients(ours.mean(), theirs.mean(), [hidden, head])


def test_dpo_equals_liger_in_value_and_gradient() -> None:
    hidden, labels, head, _ = sequences()
    rng = torch.Generator().manual_seed(1)
    reference = torch.randn(hidden.shape, generator=rng, dtype=torch.float64)
    liger = LigerFusedLinearDPOLoss(beta=BETA, compiled=False, average_log_prob=False)
    theirs = liger(head, hidden, labels, ref_input=reference, ref_weight=head.detach())[0]
    policy = losses.fused_logps(hidden, labels, head)
    frozen = losses.fused_logps(reference, labels, head.detach())
    ours = losses.dpo(*policy.chunk(2), *frozen.chunk(2), beta=BETA).mean()
    # Liger computes in float32 whatever it is given.
    assert_equal_with_gradients(ours, theirs, [hidden, head], rtol=1e-5, atol=1e-5)
