"""TRL's own loss code, called on tensors that a test hands it: no trainer, no model, no data."""

from collections import defaultdict
from collections.abc import Mapping
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn.functional import pad
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer


def dpo_trainer_loss(
    kinds: Mapping[str, float], per_token: Tensor, mask: Tensor, reference: Tensor, *, beta: float
) -> Tensor:
    """The loss of TRL's DPO trainer, as the mean over pairs: `kinds` with their weights.

    `per_token` (2B, T) are log-probabilities, 0 outside of `mask`, and `reference` (2B,) the reference's sums; chosen
    completions before rejected ones.
    """
    zeros = torch.zeros_like(per_token)
    outputs = SimpleNamespace(
        log_probs=per_token, entropy=zeros, mean_logits=zeros, is_top1=torch.zeros_like(mask).bool()
    )
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x, device="cpu"),
        loss_types=list(kinds),
        loss_weights=list(kinds.values()),
        f_divergence_type="reverse_kl",
        beta=beta,
        ld_alpha=None,
        precompute_ref_logps=True,
        aux_loss_enabled=False,
        use_weighting=False,
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    # TRL shifts the mask; its first position belongs to no completion.
    whole = pad(mask.long(), (1, 0))
    chosen, rejected = reference.chunk(2)
    inputs = {
        "input_ids": whole,
        "completion_mask": whole,
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    loss: Tensor = DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, return_outputs=False)
    return loss


def simpo_losses(logits: Tensor, labels: Tensor, *, beta: float, gamma: float, label_smoothing: float) -> Tensor:
    """SimPO of each pair (B,) from TRL's CPO trainer; logits (2B, T, V), labels (2B, T), both before the shift."""
    trainer = SimpleNamespace(
        alpha=0.0,
        accelerator=SimpleNamespace(device="cpu"),
        loss_type="simpo",
        simpo_gamma=gamma,
        beta=beta,
        label_smoothing=label_smoothing,
    )
    logps = CPOTrainer.get_batch_logps(logits, labels, average_log_prob=True)
    losses: Tensor = CPOTrainer.cpo_loss(trainer, *logps.chunk(2))[0]
    return losses
