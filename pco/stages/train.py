"""Stage `train`: the policy learns from the round's pairs with DeepSpeed.

Runs once per rank. Every rank reads the same pairs and derives the same steps; rank 0 writes.
"""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoModelForCausalLM

from data import schemas, store
from data.errors import BadInput
from pco.config.train import Train
from pco.pairing import replay
from pco.runs import policy
from pco.seeds import seed_of
from pco.stage import Stage, round_folder
from pco.training import loop, user_loss
from pco.training.batches import Batch, Example, Rated, Step, examples_of, micro_batches, rated_of, steps
from pco.training.objective import STATISTICS, PairPolicy, step_tokens

Row = dict[str, Any]
Fitting = TypeVar("Fitting", Example, Rated)


def run(stage: Stage) -> store.Manifest | None:
    """Write the `train_log` table and the trained policy's folder; rank 0 returns the manifest."""
    started = stage.launched()
    loop.start_ranks()
    current = policy.verified(stage)
    user_loss.check_unchanged(stage)
    rows, feedback = replay.rows_of(stage.inputs["pairs"].folder), _read(stage, "prompts", "feedback")
    limit = stage.config.train.max_pair_tokens
    examples = _that_fit(examples_of(rows, _read(stage, "reference", "reference_logps")), limit)
    rated = _that_fit(rated_of(feedback), limit) if feedback else []
    torch.manual_seed(seed_of("adapters", _seed(stage)))  # their first values are random
    pair_policy = PairPolicy(_model(current.folder, stage.config.train), stage.config.train)
    job = _job(stage, pair_policy, examples, rated)
    engine, log = loop.learn(job)
    state = loop.gathered(engine, pair_policy.model)
    if not loop.is_writer():
        return None
    folder = round_folder(stage.config, stage.round) / "policy"
    loop.save(state, _model(current.folder, stage.config.train), current.folder, folder)
    store.write_part(stage.folder, "train_log", 0, schemas.build("train_log", log), stage.fingerprint)
    return loop.finish(
        job,
        log,
        folder,
        unit="pairs and feedback" if feedback else "pairs",
        rows_in=len(rows) + len(feedback),
        rows_out=len(examples) + len(rated),
        dropped={"longer than max_pair_tokens": len(rows) + len(feedback) - len(examples) - len(rated)},
        started=started,
    )


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


def _model(folder: Path, train: Train) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=loop.dtype(train))
    return loop.prepared(model, train, task="CAUSAL_LM")


def _job(stage: Stage, pair_policy: PairPolicy, examples: list[Example], rated: list[Rated]) -> loop.Job[Example]:
    train, seed = stage.config.train, _seed(stage)
    pad = pair_policy.model.config.pad_token_id or 0

    def shares(step: Step, rank: int, world: int) -> Iterator[Batch]:
        return micro_batches(step, rank=rank, world=world, size=train.micro_batch_pairs, pad=pad, seed=seed)

    return loop.Job(
        stage,
        seed,
        pair_policy,
        STATISTICS,
        list(steps(examples, rated, pairs_per_step=train.pairs_per_step, epochs=train.epochs, seed=seed)),
        shares,
        partial(step_tokens, train=train),
        partial(_row, train),
        "Lower train.learning_rate, use precision: fp32, or, with pairwise_cringe, raise train.loss.tau.",
    )


def _row(train: Train, step: Step, totals: dict[str, float]) -> Row:
    feedback = len(step.feedback)
    of_pairs = {name: totals[name] / len(step.examples) for name in ("margin", "gate", "ce", "cringe")}
    return {
        "feedback": feedback,
        "tokens": step_tokens(step, train),
        **{name: None if math.isnan(value) else value for name, value in of_pairs.items()},
        "feedback_loss": totals["feedback_loss"] / feedback if feedback else None,
    }
