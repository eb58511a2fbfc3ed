"""Training with DeepSpeed, whatever it is that learns: ranks, engine, checkpoints, and weights gathered and saved.

Runs once per rank. Every rank derives the same steps; rank 0 writes.
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from transformers.utils import logging as transformers_logging

from data import files, store
from data.errors import BadInput, StageFailed
from pco import progress
from pco.config.formats import DTYPES
from pco.config.train import LoRA, Training
from pco.models import weights
from pco.models.rendering import load_tokenizer
from pco.progress import Progress
from pco.seeds import seed_of
from pco.stage import Stage
from pco.training import checkpoints
from pco.training.batches import Step

Row = dict[str, Any]
Pair = TypeVar("Pair")


@dataclass(frozen=True)
class Job(Generic[Pair]):
    """What is particular to one training."""

    stage: Stage[Any]
    seed: str
    # Batch -> its summed loss, and detached sums of what `statistics` names as float64; the first is the loss.
    learner: torch.nn.Module
    statistics: tuple[str, ...]
    plan: Sequence[Step[Pair]]
    micro_batches: Callable[[Step[Pair], int, int], Iterator[Any]]  # a step's share of a rank, of so many
    divisor: Callable[[Step[Pair]], int]  # by what the summed loss of a whole step is divided
    row: Callable[[Step[Pair], dict[str, float]], Row]  # what the log says of a step beside the common columns
    remedy: str  # what to do when training diverges

    @property
    def settings(self) -> Training:
        settings: Training = self.stage.config.train
        return settings

    @property
    def checkpoints(self) -> Path:
        return self.stage.folder / checkpoints.FOLDER


def start_ranks() -> None:
    """Join the other processes of this training."""
    transformers_logging.disable_progress_bar()
    if get_accelerator().device_name() == "cpu":
        # An optional kernel that takes half a minute to compile and saves nothing on one machine.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        processes = int(os.environ["WORLD_SIZE"])
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes))
    deepspeed.init_distributed(verbose=False)


def is_writer() -> bool:
    """Whether this is the rank that writes."""
    return bool(torch.distributed.get_rank() == 0)


def dtype(train: Training) -> torch.dtype:
    """The number format of weights and activations."""
    decided: torch.dtype = getattr(torch, DTYPES[train.precision])
    return decided


def prepared(model: Any, train: Training, *, task: str) -> Any:
    """A Hugging Face model ready to learn, under adapters if wanted; `task` is peft's name for what it does."""
    if train.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    return model if train.lora is None else _with_adapters(model, train.lora, task)


def _with_adapters(model: Any, lora: LoRA, task: str) -> Any:
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type=task,
    )
    return get_peft_model(model, settings)


def learn(job: Job[Pair]) -> tuple[Any, list[Row]]:
    """Take every step of the plan that no checkpoint holds; returns DeepSpeed's engine and the log of all steps."""
    engine = _engine(job.learner, job.settings, len(job.plan))
    return engine, _train(job, engine)


def _engine(learner: torch.nn.Module, train: Training, total_steps: int) -> Any:
    trainable = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=train.learning_rate, weight_decay=train.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, total_steps, train))
    engine, *_ = deepspeed.initialize(
        model=learner, optimizer=optimizer, lr_scheduler=schedule, config=_deepspeed_config(train)
    )
    _remember_gradient_norm(engine)
    return engine


def rate(step: int, total: int, train: Training) -> float:
    """Share of the peak learning rate in a step (from 0): rising over the warm-up, then as `schedule` says.

    Unlike the common helpers it is nowhere 0, neither in the first step nor in the last: a round has few steps.
    """
    warmup = round(train.warmup_share * total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    left = (total - step) / (total - warmup) if total > step else 0.0
    match train.schedule:
        case "constant":
            return 1.0
        case "linear":
            return left
        case "cosine":
            return (1 - math.cos(math.pi * left)) / 2


def _remember_gradient_norm(engine: Any) -> None:
    """Clip float32 gradients without ZeRO as DeepSpeed does, and keep their norm, which DeepSpeed throws away there."""

    def clip() -> None:
        norm = torch.nn.utils.clip_grad_norm_(engine.module.parameters(), engine.gradient_clipping())
        engine._global_grad_norm = float(norm)

    engine.clip_fp32_gradients = clip


def _deepspeed_config(train: Training) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": train.micro_batch_pairs,
        # We call step() when a step's micro-batches are through, however many they are.
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": train.max_grad_norm,
        "bf16": {"enabled": train.precision == "bf16"},
        "zero_optimization": {"stage": train.zero_stage},
        "zero_allow_untested_optimizer": True,  # torch's AdamW, which needs no compiler
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }


def _train(job: Job[Pair], engine: Any) -> list[Row]:
    train, folder = job.settings, job.checkpoints
    # DeepSpeed splits a checkpoint by these two; with others it could not be read.
    fingerprint = files.digest([job.stage.fingerprint, train.processes, train.zero_stage])
    log: list[Row] = []
    if is_writer():
        checkpoints.keep_only(folder, fingerprint)
    torch.distributed.barrier()
    checkpoint = checkpoints.latest(folder, fingerprint)
    if checkpoint is not None:
        checkpoints.load(engine, checkpoint)
        log = checkpoint.log
    total = len(job.plan)
    if is_writer():
        progress.report(Progress(len(log), total, "steps"))  # what is kept, before the first is taken
    for step in job.plan[len(log) :]:
        log.append(_step(job, engine, step))
        _report(log[-1], total)
        if len(log) % train.checkpoint_steps == 0 and len(log) < total:
            checkpoints.save(engine, folder, log, fingerprint, of=total, keep=train.keep_checkpoints)
    return log


def _step(job: Job[Pair], engine: Any, step: Step[Pair]) -> Row:
    """One optimizer step over all ranks, and its row of the log."""
    began = time.monotonic()
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    torch.manual_seed(seed_of("dropout", job.seed, step.number, rank))  # so that a resumed training draws the same
    sums = torch.zeros(len(job.statistics), dtype=torch.float64)
    divisor, learning_rate = job.divisor(step), engine.get_lr()[0]
    for batch in job.micro_batches(step, rank, world):
        loss, statistics = engine(batch.to(engine.device))
        # DeepSpeed averages over ranks; the objective is a sum over ranks divided once by the whole step's divisor.
        engine.backward(loss * (world / divisor), scale_wrt_gas=False)
        sums += statistics.cpu()
    engine.step()
    seconds = time.monotonic() - began
    totals = _totals(job, step, sums.to(engine.device))
    return {
        "step": step.number,
        "epoch": step.epoch,
        "pairs": len(step.examples),
        "loss": totals["loss"] / divisor,
        "learning_rate": learning_rate,
        "grad_norm": float(engine.get_global_grad_norm() or 0.0),
        "seconds": seconds,
        **job.row(step, totals),
    }


def _totals(job: Job[Pair], step: Step[Pair], sums: torch.Tensor) -> dict[str, float]:
    """The statistics over all ranks. Raises BadInput when the loss is not finite."""
    torch.distributed.all_reduce(sums)
    totals = dict(zip(job.statistics, sums.tolist(), strict=True))
    if not math.isfinite(totals["loss"]):
        raise BadInput(
            f"step {step.number}: the loss is {totals['loss']}, so training has diverged and no step after it means "
            f"anything. {job.remedy}"
        )
    return totals


def _report(row: Row, total: int) -> None:
    if is_writer():
        speed = f"{row['tokens'] / row['seconds']:,.0f} tok/s"
        progress.report(Progress(row["step"] + 1, total, "steps", speed))


def gathered(engine: Any, model: Any) -> dict[str, torch.Tensor]:
    """All weights on rank 0's CPU (elsewhere nothing); under ZeRO-3 one after the other, so memory stays bounded."""
    split = engine.zero_optimization_partition_weights()
    state = {}
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=split):
            if is_writer():
                state[name] = parameter.detach().cpu().clone()
    return state


def save(state: dict[str, torch.Tensor], fresh: Any, tokenizer: Path, folder: Path) -> None:
    """Write trained weights as a Hugging Face folder that appears whole or not at all; adapters are merged.

    `fresh` is the model as `prepared` made it, untouched by DeepSpeed, with its tied weights and buffers in place.
    """
    missing, unexpected = fresh.load_state_dict(state, strict=False)
    lost = set(missing) & {name for name, _ in fresh.named_parameters()}
    if lost or unexpected:
        raise StageFailed(
            f"{folder}: not saved, because the trained weights are not the model's: without {sorted(lost)[:3]}, with "
            f"{sorted(unexpected)[:3]} besides. This is a fault of the program; please report it with the model's name."
        )
    merged = fresh.merge_and_unload() if hasattr(fresh, "merge_and_unload") else fresh
    with files.atomic_folder(folder) as temporary:
        weights.save(merged, temporary)
        load_tokenizer(tokenizer).save_pretrained(temporary)


def finish(
    job: Job[Pair], log: list[Row], folder: Path, *, metrics: Mapping[str, float] | None = None, **account: Any
) -> store.Manifest:
    """End a training stage whose result lies in `folder`; `account` holds the counts of `store.finish`."""
    tokens, seconds = (sum(row[name] for row in log) for name in ("tokens", "seconds"))
    work = {"training_s": seconds, "steps": len(log), "tokens": tokens, "tokens_per_s": tokens / seconds}
    manifest = job.stage.finish(
        outputs={folder.name: files.folder_digest(folder)},
        metrics={**work, **(metrics or {})},
        **account,
    )
    checkpoints.remove(job.checkpoints)
    return manifest
