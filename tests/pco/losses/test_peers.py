"""DPO and IPO against the implementations of two other projects (development dependencies)."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss
from torch import Tensor
from trl.trainer.dpo_trainer import DPOTrainer

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


def trl_loss(kind: str, per_token: Tensor, mask: Tensor, reference: Tensor) -> Any:
    """The loss that TRL's DPO trainer computes from these log-probabilities, as the mean over pairs."""
    zeros = torch.zeros_like(per_token)
    outputs = SimpleNamespace(
        log_probs=per_token, entropy=zeros, mean_logits=zeros, is_top1=torch.zeros_like(mask).bool()
    )
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x, device="cpu"),
        loss_types=[kind],
        loss_weights=[1.0],
        f_divergence_type="reverse_kl",
        beta=BETA,
        ld_alpha=None,
        precompute_ref_logps=True,
        aux_loss_enabled=False,
        use_weighting=False,
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    # TRL shifts the mask; its first position belongs to no completion.
    whole = torch.nn.functional.pad(mask.long(), (1, 0))
    chosen, rejected = reference.chunk(2)
    inputs = {
        "input_ids": whole,
        "completion_mask": whole,
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    return DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, return_outputs=False)


@pytest.mark.parametrize("kind", ["sigmoid", "ipo"])
def test_dpo_and_ipo_equal_trl_in_value_and_gradient(kind: str) -> None:
    hidden, labels, head, reference = sequences()
    mask = labels != losses.IGNORE
    per_token = (hidden @ head.t()).log_softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1))[..., 0]
    theirs = trl_loss(kind, per_token * mask, mask, reference)
    # TRL's IPO takes the mean log-probability per token.
    counts = mask.sum(-1) if kind == "ipo" else torch.ones(4)
    policy = losses.fused_logps(hidden, labels, head, chunk_tokens=5) / counts
    function = losses.ipo if kind == "ipo" else losses.dpo
    ours = function(*policy.chunk(2), *(reference / counts).chunk(2), beta=BETA).mean()
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(
        torch.autograd.grad(ours, [hidden, head]),
        torch.autograd.grad(theirs, [hidden, head]),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


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
    torch.testing.assert_close(ours, theirs, check_dtype=False, rtol=1e-5, atol=1e-5)
    for one, other in zip(
        torch.autograd.grad(ours, [hidden, head]),
        torch.autograd.grad(theirs, [hidden, head]),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
