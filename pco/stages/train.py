"""Stage `train`: the policy learns from the round's pairs with DeepSpeed.

Runs once per rank. Every rank reads the same pairs and derives the same steps; rank 0 writes.
"""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from transformers import AutoModelForCausalLM

from data import schemas, store
from data.errors import BadInput
from data.rows import FeedbackRow, ReferenceLogpsRow
from pco.config.train import Train
from pco.models.protocols import Model
from pco.pairing import replay
from pco.runs import policy
from pco.seeds import seed_of
from pco.stage import Stage, round_folder
from pco.training import loop, user_loss
from pco.training.batches import Batch, Example, Rated, Step, examples_of, micro_batches, rated_of, steps
from pco.training.objective import STATISTICS, PairPolicy, divisor, step_tokens

Fitting = TypeVar("Fitting", Example, Rated)


def run(stage: Stage) -> store.Manifest | None:
    """Write the `train_log` table and the trained policy's folder; rank 0 returns the manifest."""
    started = stage.launched()
    loop.start_ranks()
    current = policy.verified(stage)
    user_loss.check_unchanged(stage)
    rows, feedback = replay.rows_of(stage.inputs["pairs"].folder), _feedback(stage)
    limit = stage.config.train.max_pair_tokens
    examples = _that_fit(examples_of(rows, _reference_logps(stage)), limit)
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


def _holds(stage: Stage, name: str, table: str) -> bool:
    """Whether the stage has an input of this name, and that input this table."""
    return name in stage.inputs and store.has_table(stage.inputs[name].folder, table)


def _feedback(stage: Stage) -> list[FeedbackRow]:
    """The user's feedback; none where the run has none."""
    if not _holds(stage, "prompts", "feedback"):
        return []
    rows: list[FeedbackRow] = store.read_table(stage.inputs["prompts"].folder, "feedback").to_pylist()
    return rows


def _reference_logps(stage: Stage) -> list[ReferenceLogpsRow]:
    """The log-probabilities under the reference policy; none for a loss without one."""
    if not _holds(stage, "reference", "reference_logps"):
        return []
    rows: list[ReferenceLogpsRow] = store.read_table(stage.inputs["reference"].folder, "reference_logps").to_pylist()
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


def _model(folder: Path, train: Train) -> Model:
    model: Model = loop.prepared(
        AutoModelForCausalLM.from_pretrained(folder, dtype=loop.dtype(train)), train, task="CAUSAL_LM"
    )
    return model


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
        partial(divisor, train=train),
        partial(_row, train),
        "Lower train.learning_rate, use precision: fp32, or, with pairwise_cringe, raise train.loss.tau.",
    )


def _row(train: Train, step: Step, totals: dict[str, float]) -> loop.Row:
    feedback = len(step.feedback)
    of_pairs = {name: totals[name] / len(step.examples) for name in ("margin", "gate", "ce", "cringe")}
    return {
        "feedback": feedback,
        "tokens": step_tokens(step, train),
        **{name: None if math.isnan(value) else value for name, value in of_pairs.items()},
        "feedback_loss": totals["feedback_loss"] / feedback if feedback else None,
    }
