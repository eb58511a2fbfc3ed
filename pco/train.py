"""Stage `train`: the policy learns from the round's pairs with DeepSpeed.

Runs once per rank. Every rank reads the same pairs and derives the same steps; rank 0 writes.
"""

import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from data import schemas, store
from data.errors import BadInput
from pco import checkpoints, policy, progress, replay
from pco.batches import Example, Rated, Step, examples_of, micro_batches, rated_of, steps
from pco.objective import STATISTICS, PairPolicy, step_tokens
from pco.progress import Progress
from pco.rendering import load_tokenizer
from pco.seeds import seed_of
from pco.stage import Stage, round_folder
from pco.train_config import LoRA, Train

Row = dict[str, Any]
Fitting = TypeVar("Fitting", Example, Rated)


def run(stage: Stage) -> store.Manifest | None:
    """Write the `train_log` table and the trained policy's folder; rank 0 returns the manifest."""
    started = stage.launched()
    _start_ranks()
    current = policy.verified(stage)
    rows, feedback = replay.rows_of(stage.inputs["pairs"].folder), _read(stage, "prompts", "feedback")
    limit = stage.config.train.max_pair_tokens
    examples = _that_fit(examples_of(rows, _read(stage, "reference", "reference_logps")), limit)
    rated = _that_fit(rated_of(feedback), limit) if feedback else []
    plan = list(_steps(stage, examples, rated))
    torch.manual_seed(seed_of("adapters", _seed(stage)))  # their first values are random
    engine, pair_policy = _engine(current.folder, stage.config.train, len(plan))
    log = _train(stage, engine, pair_policy, plan)
    state = _gather(engine, pair_policy.model)
    if torch.distributed.get_rank() != 0:
        return None
    folder = round_folder(stage.config, stage.round) / "policy"
    _save(state, current.folder, stage.config.train, folder)
    store.write_part(stage.folder, "train_log", 0, schemas.build("train_log", log), stage.fingerprint)
    tokens, seconds = (sum(row[name] for row in log) for name in ("tokens", "seconds"))
    manifest = stage.finish(
        unit="pairs and feedback" if feedback else "pairs",
        rows_in=len(rows) + len(feedback),
        rows_out=len(examples) + len(rated),
        dropped={"longer than max_pair_tokens": len(rows) + len(feedback) - len(examples) - len(rated)},
        started=started,
        outputs={"policy": store.folder_digest(folder)},
        metrics={"training_s": seconds, "steps": len(log), "tokens": tokens, "tokens_per_s": tokens / seconds},
    )
    checkpoints.remove(_checkpoints(stage))
    return manifest


def _checkpoints(stage: Stage) -> Path:
    return stage.folder / checkpoints.FOLDER


def _start_ranks() -> None:
    transformers_logging.disable_progress_bar()
    if get_accelerator().device_name() == "cpu":
        # An optional kernel that takes half a minute to compile and saves nothing on one machine.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        processes = int(os.environ["WORLD_SIZE"])
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes))
    deepspeed.init_distributed(verbose=False)


def _read(stage: Stage, source: str, table: str) -> list[Row]:
    """A table of one of the inputs; no rows when the stage has no such input, or the input no such table."""
    if source not in stage.inputs or not store.has_table(stage.inputs[source].folder, table):
        return []
    rows: list[Row] = store.read_table(stage.inputs[source].folder, table).to_pylist()
    return rows


def _that_fit(items: list[Fitting], limit: int) -> list[Fitting]:
    fitting = [item for item in items if item.longest <= limit]
    if not fitting:
        raise BadInput(
            f"train.max_pair_tokens: all {len(items)} pairs or pieces of feedback are longer than {limit} tokens. "
            "Raise it."
        )
    return fitting


def _seed(stage: Stage) -> str:
    return f"{stage.config.seed}:{stage.round}"


def _steps(stage: Stage, examples: list[Example], rated: list[Rated]) -> Iterator[Step]:
    train = stage.config.train
    return steps(examples, rated, pairs_per_step=train.pairs_per_step, epochs=train.epochs, seed=_seed(stage))


def _engine(folder: Path, train: Train, total_steps: int) -> tuple[Any, PairPolicy]:
    pair_policy = PairPolicy(_model(folder, train), train)
    trainable = [parameter for parameter in pair_policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=train.learning_rate, weight_decay=train.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, total_steps, train))
    engine, *_ = deepspeed.initialize(
        model=pair_policy, optimizer=optimizer, lr_scheduler=schedule, config=_deepspeed_config(train)
    )
    _remember_gradient_norm(engine)
    return engine, pair_policy


def rate(step: int, total: int, train: Train) -> float:
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


def _model(folder: Path, train: Train) -> Any:
    dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    if train.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    return model if train.lora is None else _with_adapters(model, train.lora)


def _with_adapters(model: Any, lora: LoRA) -> Any:
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, settings)


def _deepspeed_config(train: Train) -> dict[str, Any]:
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


def _train(stage: Stage, engine: Any, pair_policy: PairPolicy, plan: list[Step]) -> list[Row]:
    """Take every step that no checkpoint holds; returns the log of all steps."""
    train, folder = stage.config.train, _checkpoints(stage)
    # DeepSpeed splits a checkpoint by these two; with others it could not be read.
    fingerprint = store.digest([stage.fingerprint, train.processes, train.zero_stage])
    log: list[Row] = []
    if torch.distributed.get_rank() == 0:
        checkpoints.keep_only(folder, fingerprint)
    torch.distributed.barrier()
    if (checkpoint := checkpoints.latest(folder, fingerprint)) is not None:
        checkpoints.load(engine, checkpoint)
        log = checkpoint.log
    pad = pair_policy.model.config.pad_token_id or 0
    if torch.distributed.get_rank() == 0:
        progress.report(Progress(len(log), len(plan), "steps"))  # what is kept, before the first is taken
    for step in plan[len(log) :]:
        log.append(_step(stage, engine, step, pad))
        _tell(log[-1], len(plan))
        if len(log) % train.checkpoint_steps == 0 and len(log) < len(plan):
            checkpoints.save(engine, folder, log, fingerprint, of=len(plan), keep=train.keep_checkpoints)
    return log


def _step(stage: Stage, engine: Any, step: Step, pad: int) -> Row:
    """One optimizer step over all ranks, and its row of the log."""
    began = time.monotonic()
    train, seed = stage.config.train, _seed(stage)
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    torch.manual_seed(seed_of("dropout", seed, step.number, rank))  # so that a resumed training draws the same
    sums = torch.zeros(len(STATISTICS), dtype=torch.float64)
    tokens, learning_rate = step_tokens(step, train), engine.get_lr()[0]
    for batch in micro_batches(step, rank=rank, world=world, size=train.micro_batch_pairs, pad=pad, seed=seed):
        loss, statistics = engine(batch.to(engine.device))
        # DeepSpeed averages over ranks; the objective is a sum over ranks divided by the whole step's tokens.
        engine.backward(loss * (world / tokens), scale_wrt_gas=False)
        sums += statistics.cpu()
    engine.step()
    figures = {"tokens": tokens, "learning_rate": learning_rate, "seconds": time.monotonic() - began}
    row = _log_row(step, engine, sums)
    return row | figures | {"loss": row["loss"] / tokens}


def _log_row(step: Step, engine: Any, sums: torch.Tensor) -> Row:
    sums = sums.to(engine.device)
    torch.distributed.all_reduce(sums)
    totals = dict(zip(STATISTICS, sums.tolist(), strict=True))
    if not math.isfinite(totals["loss"]):
        raise BadInput(
            f"step {step.number}: the loss is {totals['loss']}, so training has diverged and no step after it means "
            "anything. Lower train.learning_rate, raise train.loss.tau, or use precision: fp32."
        )
    pairs, feedback = len(step.examples), len(step.feedback)
    of_pairs = {name: totals[name] / pairs for name in ("margin", "gate", "ce", "cringe")}
    return {
        "step": step.number,
        "epoch": step.epoch,
        "pairs": pairs,
        "feedback": feedback,
        "loss": totals["loss"],
        **{name: None if math.isnan(value) else value for name, value in of_pairs.items()},
        "feedback_loss": totals["feedback_loss"] / feedback if feedback else None,
        "grad_norm": float(engine.get_global_grad_norm() or 0.0),
    }


def _tell(row: Row, total: int) -> None:
    if torch.distributed.get_rank() == 0:
        speed = f"{row['tokens'] / row['seconds']:,.0f} tok/s"
        progress.report(Progress(row["step"] + 1, total, "steps", speed))


def _gather(engine: Any, model: Any) -> dict[str, torch.Tensor]:
    """All weights on rank 0's CPU (elsewhere nothing); under ZeRO-3 one after the other, so memory stays bounded."""
    split = engine.zero_optimization_partition_weights()
    state = {}
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=split):
            if torch.distributed.get_rank() == 0:
                state[name] = parameter.detach().cpu().clone()
    return state


def _save(state: dict[str, torch.Tensor], source: Path, train: Train, folder: Path) -> None:
    """Write the trained policy as a Hugging Face folder that appears whole or not at all; adapters are merged."""
    fresh = _model(source, train)  # untouched by DeepSpeed, with its tied weights and buffers in place
    missing, unexpected = fresh.load_state_dict(state, strict=False)
    lost = set(missing) & {name for name, _ in fresh.named_parameters()}
    assert not lost and not unexpected, (lost, unexpected)
    merged = fresh if train.lora is None else fresh.merge_and_unload()
    with store.atomic_folder(folder) as temporary:
        _save_weights(merged, temporary)
        load_tokenizer(source).save_pretrained(temporary)


def _save_weights(model: Any, folder: Path) -> None:
    try:
        model.save_pretrained(folder)
    except SafetensorError as error:  # its name for what the system refused, such as a full disk
        raise OSError(0, str(error)) from error
