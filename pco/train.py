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
from transformers import AutoModelForCausalLM, get_scheduler
from transformers.utils import logging as transformers_logging

from data import schemas, store
from data.errors import BadInput
from pco import policy, progress
from pco.batches import Example, Rated, Step, examples_of, micro_batches, rated_of, steps
from pco.config import LoRA, Train
from pco.objective import STATISTICS, PairPolicy, step_tokens
from pco.progress import Progress
from pco.rendering import load_tokenizer
from pco.stage import Stage, round_folder

Row = dict[str, Any]
Fitting = TypeVar("Fitting", Example, Rated)


def run(stage: Stage) -> store.Manifest | None:
    """Write the `train_log` table and the trained policy's folder; rank 0 returns the manifest."""
    started = stage.launched()
    _start_ranks()
    torch.manual_seed(stage.config.seed)
    current = policy.verified(stage)
    rows, feedback = _read(stage, "pairs", "pairs"), _read(stage, "prompts", "feedback")
    limit = stage.config.train.max_pair_tokens
    examples = _that_fit(examples_of(rows, _read(stage, "reference", "reference_logps")), limit)
    rated = _that_fit(rated_of(feedback), limit) if feedback else []
    plan = list(_steps(stage, examples, rated))
    engine, pair_policy = _engine(current.folder, stage.config.train, len(plan))
    began = time.monotonic()
    log = list(_train(stage, engine, pair_policy, plan))
    seconds = time.monotonic() - began
    state = _gather(engine, pair_policy.model)
    if torch.distributed.get_rank() != 0:
        return None
    folder = round_folder(stage.config, stage.round) / "policy"
    _save(state, current.folder, stage.config.train, folder)
    store.write_part(stage.folder, "train_log", 0, schemas.build("train_log", log), stage.fingerprint)
    tokens = sum(row["tokens"] for row in log)
    return stage.finish(
        unit="pairs and feedback" if feedback else "pairs",
        rows_in=len(rows) + len(feedback),
        rows_out=len(examples) + len(rated),
        dropped={"longer than max_pair_tokens": len(rows) + len(feedback) - len(examples) - len(rated)},
        started=started,
        outputs={"policy": store.folder_digest(folder)},
        metrics={"training_s": seconds, "steps": len(log), "tokens": tokens, "tokens_per_s": tokens / seconds},
    )


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
    optimizer = torch.optim.AdamW(trainable, lr=train.learning_rate, weight_decay=train.weight_decay)
    warmup = round(train.warmup_share * total_steps)
    name = "constant_with_warmup" if train.schedule == "constant" else train.schedule
    # One more than there are, so that the last step still has a learning rate above 0.
    schedule = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total_steps + 1)
    engine, *_ = deepspeed.initialize(
        model=pair_policy, optimizer=optimizer, lr_scheduler=schedule, config=_deepspeed_config(train)
    )
    _remember_gradient_norm(engine)
    return engine, pair_policy


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


def _train(stage: Stage, engine: Any, pair_policy: PairPolicy, plan: list[Step]) -> Iterator[Row]:
    train = stage.config.train
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    pad = pair_policy.model.config.pad_token_id or 0
    for step in plan:
        at = time.monotonic()
        sums = torch.zeros(len(STATISTICS), dtype=torch.float64)
        tokens = step_tokens(step, train)
        learning_rate = engine.get_lr()[0]
        for batch in micro_batches(
            step, rank=rank, world=world, size=train.micro_batch_pairs, pad=pad, seed=_seed(stage)
        ):
            loss, statistics = engine(batch.to(engine.device))
            # DeepSpeed averages over ranks; the objective is a sum over ranks divided by the whole step's tokens.
            engine.backward(loss * (world / tokens), scale_wrt_gas=False)
            sums += statistics.cpu()
        engine.step()
        yield _log_row(step, sums, tokens, learning_rate, engine, time.monotonic() - at)
        _tell(step, len(plan), tokens, time.monotonic() - at)


def _log_row(step: Step, sums: torch.Tensor, tokens: int, learning_rate: float, engine: Any, seconds: float) -> Row:
    sums = sums.to(engine.device)
    torch.distributed.all_reduce(sums)
    totals = dict(zip(STATISTICS, sums.tolist(), strict=True))
    pairs, feedback = len(step.examples), len(step.feedback)
    of_pairs = {name: totals[name] / pairs for name in ("margin", "gate", "ce", "cringe")}
    return {
        "step": step.number,
        "epoch": step.epoch,
        "pairs": pairs,
        "feedback": feedback,
        "tokens": tokens,
        "loss": totals["loss"] / tokens,
        **{name: None if math.isnan(value) else value for name, value in of_pairs.items()},
        "feedback_loss": totals["feedback_loss"] / feedback if feedback else None,
        "learning_rate": learning_rate,
        "grad_norm": float(engine.get_global_grad_norm() or 0.0),
        "seconds": seconds,
    }


def _tell(step: Step, total: int, tokens: int, seconds: float) -> None:
    if torch.distributed.get_rank() == 0:
        progress.report(Progress(step.number + 1, total, "steps", f"{tokens / seconds:,.0f} tok/s"))


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
        merged.save_pretrained(temporary)
        load_tokenizer(source).save_pretrained(temporary)
