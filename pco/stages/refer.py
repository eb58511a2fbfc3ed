"""Stage `refer`: log-probabilities of every pair under the reference policy, so that training needs no second model.

Only losses with a reference (DPO, IPO, one of your own that asks for it) have this stage.
"""

import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from data import schemas, store
from data.rows import ReferenceLogpsRow, TrainingPairRow
from pco import losses
from pco.config.formats import DTYPES
from pco.models.protocols import Model
from pco.pairing import replay
from pco.runs import policy
from pco.sharding import OnDone, Shard, Span
from pco.stage import Stage
from pco.training.batches import Example, collate, examples_of, longest_first
from pco.training.layout import Reader
from pco.training.objective import decoder_and_head

_SHARD_PAIRS = 256
_BATCH_PAIRS = 8


def run(stage: Stage) -> store.Manifest:
    """Write the `reference_logps` table, shard by shard."""
    started = stage.launched()
    transformers_logging.disable_progress_bar()
    reference = policy.verified(stage)
    rows = replay.rows_of(stage.inputs["pairs"].folder)
    shards = [rows[start : start + _SHARD_PAIRS] for start in range(0, len(rows), _SHARD_PAIRS)]

    @cache
    def loaded() -> tuple[Model, Any, Reader]:
        model = _model(stage)
        decoder, head = decoder_and_head(model)
        longest = max((example.longest for example in examples_of(rows)), default=0)
        return model, head, Reader(decoder, model.config, stage.config.train.layout, longest=longest)

    def make(index: int, on_done: OnDone) -> Shard:
        shard, reading = shards[index], loaded()
        began = time.monotonic()
        logps = _logps(*reading, examples_of(shard), on_done)
        content = [_row(row, pair, reference.fingerprint) for row, pair in zip(shard, logps, strict=True)]
        seconds = time.monotonic() - began
        return Shard(schemas.build("reference_logps", content), measured={"scoring_s": seconds})

    span = Span()
    for done in stage.shards("reference_logps", list(map(len, shards)), make, unit="pairs"):
        if done.measured:
            span.ended(done.measured["scoring_s"])
    return stage.finish(
        unit="pairs",
        rows_in=len(rows),
        rows_out=len(rows),
        dropped={},
        started=started,
        metrics={"scoring_s": span.seconds},
    )


def _model(stage: Stage) -> Model:
    # In the trainer's number format, so that policy and reference are equal to the bit at the first step.
    dtype = getattr(torch, DTYPES[stage.config.train.precision])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = AutoModelForCausalLM.from_pretrained(stage.inputs["policy"].folder, dtype=dtype)
    model: Model = loaded.to(device).eval()
    return model


@torch.no_grad()
def _logps(
    model: Model, head: Any, reader: Reader, examples: Sequence[Example], on_done: OnDone
) -> list[tuple[float, float]]:
    """(chosen, rejected) of each pair, in nats."""
    logps: dict[str, tuple[float, float]] = {}
    ordered = longest_first(examples)  # those of similar length together leave little to pad
    for start in range(0, len(ordered), _BATCH_PAIRS):
        pairs = ordered[start : start + _BATCH_PAIRS]
        batch = collate(pairs, pad=model.config.pad_token_id or 0, seed=0).to(model.device)
        hidden, labels = reader.read(batch)
        sums = losses.fused_logps(hidden, labels, head.weight, head_bias=getattr(head, "bias", None))
        sides = zip(sums[batch.chosen].tolist(), sums[batch.rejected].tolist(), strict=True)
        logps |= zip((pair.pair_id for pair in pairs), sides, strict=True)
        on_done(len(pairs))
    return [logps[pair.pair_id] for pair in examples]


def _row(pair: TrainingPairRow, logps: tuple[float, float], digest: str) -> ReferenceLogpsRow:
    return {
        "round": pair.get("round"),
        "prompt_id": pair["prompt_id"],
        "chosen_sample": pair["chosen_sample"],
        "rejected_sample": pair["rejected_sample"],
        "chosen_logp": logps[0],
        "rejected_logp": logps[1],
        "policy": digest,
    }
