"""Stage `trace`: by how much each pair of a training moved the log-probability of one answer, to first order."""

from functools import partial
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from data import schemas, store
from data.errors import CorruptArtifact
from data.rows import CandidateRow, InfluenceRow, TrainingPairRow
from pco.config.trace import Trace
from pco.pairing import replay
from pco.runs import policy
from pco.seeds import seed_of
from pco.sharding import OnDone, Shard
from pco.stage import Stage
from pco.stages import learning
from pco.training import influence, loop, user_loss
from pco.training.batches import Example
from pco.training.objective import PairPolicy, divisor
from pco.training.pair_ids import pair_id

_SHARD_PAIRS = 64


def run(stage: Stage[Trace]) -> store.Manifest:
    """Write the `influence` table, shard by shard; a pair at a time is in memory."""
    started = stage.launched()
    transformers_logging.disable_progress_bar()
    training = Stage("train", stage.round, stage.config.traced, stage.inputs)
    current = policy.verified(training)
    user_loss.check_unchanged(training)
    material, train, seed = learning.material(training), training.config.train, learning.seed(training)
    by_pair = influence.shares(
        plan := learning.plan(training, material),
        rate=lambda step: train.learning_rate * loop.rate(step.number, len(plan), train),
        divisor=partial(divisor, train=train),
    )
    torch.manual_seed(seed_of("adapters", seed))  # as training begins
    model: Any = learning.model(current.folder, train)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()  # dropout would only add noise
    parameters = influence.chosen_parameters(model, stage.config.parameters)
    pad = model.config.pad_token_id or 0
    logp = influence.answer_logp(model, _answer(stage), pad)
    of_answer = influence.gradient(logp, parameters)
    pair_policy = PairPolicy(model, train)
    rows = [row for row in replay.rows_of(stage.inputs["pairs"].folder) if pair_id(row) in by_pair]
    shards = [rows[start : start + _SHARD_PAIRS] for start in range(0, len(rows), _SHARD_PAIRS)]

    def make(index: int, on_done: OnDone) -> Shard:
        content = []
        for row in shards[index]:
            moved = influence.influence(pair_policy, by_pair[pair_id(row)], of_answer, parameters, pad=pad, seed=seed)
            content.append(_row(row, moved))
            on_done(1)
        return Shard(schemas.build("influence", content))

    for _ in stage.shards("influence", list(map(len, shards)), make, unit="pairs"):
        pass
    pairs = material.rows - material.feedback
    return stage.finish(
        unit="pairs",
        rows_in=pairs,
        rows_out=len(rows),
        dropped={"longer than max_pair_tokens": pairs - len(rows)},
        started=started,
        outputs={"round": str(stage.round), "answered": str(stage.config.answered)},
        metrics={"logprob_before": float(logp.detach())},
    )


def _answer(stage: Stage[Trace]) -> Example:
    """The traced answer in the place of a chosen completion."""
    config = stage.config
    candidates: list[CandidateRow] = store.read_table(stage.inputs["answer"].folder, "candidates").to_pylist()
    wanted = (config.prompt_id, config.mode, config.sample)
    for row in candidates:
        if (row["prompt_id"], row["mode"], row["sample"]) == wanted:
            return Example("answer", row["prompt_token_ids"], row["token_ids"], [])
    raise CorruptArtifact(f"{stage.inputs['answer'].folder}: the answer {wanted} is gone since it was found there.")


def _row(pair: TrainingPairRow, moved: float) -> InfluenceRow:
    return {
        "round": pair.get("round"),
        "prompt_id": pair["prompt_id"],
        "chosen_sample": pair["chosen_sample"],
        "rejected_sample": pair["rejected_sample"],
        "influence": moved,
    }
