"""Stage `train`: the policy learns from the round's pairs with DeepSpeed.

Runs once per rank. Every rank reads the same pairs and derives the same steps; rank 0 writes.
"""

import math
from collections.abc import Iterator
from functools import partial

import torch

from data import schemas, store
from pco.config.train import Train
from pco.runs import policy
from pco.seeds import seed_of
from pco.stage import Stage, round_folder
from pco.stages import learning
from pco.training import loop, user_loss
from pco.training.batches import Batch, Example, Step, micro_batches
from pco.training.objective import STATISTICS, PairPolicy, divisor, step_tokens


def run(stage: Stage) -> store.Manifest | None:
    """Write the `train_log` table and the trained policy's folder; rank 0 returns the manifest."""
    started = stage.launched()
    loop.start_ranks()
    current = policy.verified(stage)
    user_loss.check_unchanged(stage)
    material = learning.material(stage)
    torch.manual_seed(seed_of("adapters", learning.seed(stage)))  # their first values are random
    pair_policy = PairPolicy(learning.model(current.folder, stage.config.train), stage.config.train)
    job = _job(stage, pair_policy, material)
    engine, log = loop.learn(job)
    state = loop.gathered(engine, pair_policy.model)
    if not loop.is_writer():
        return None
    folder = round_folder(stage.config, stage.round) / "policy"
    loop.save(state, learning.model(current.folder, stage.config.train), current.folder, folder)
    store.write_part(stage.folder, "train_log", 0, schemas.build("train_log", log), stage.fingerprint)
    return loop.finish(
        job,
        log,
        folder,
        unit="pairs and feedback" if material.rated else "pairs",
        rows_in=material.rows,
        rows_out=len(material.examples) + len(material.rated),
        dropped={"longer than max_pair_tokens": material.dropped},
        started=started,
    )


def _job(stage: Stage, pair_policy: PairPolicy, material: learning.Material) -> loop.Job[Example]:
    train, seed = stage.config.train, learning.seed(stage)
    pad = pair_policy.model.config.pad_token_id or 0

    def shares(step: Step, rank: int, world: int) -> Iterator[Batch]:
        return micro_batches(step, rank=rank, world=world, size=train.micro_batch_pairs, pad=pad, seed=seed)

    return loop.Job(
        stage,
        seed,
        pair_policy,
        STATISTICS,
        learning.plan(stage, material),
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
