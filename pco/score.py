"""Stage `score`: the reward judges every candidate, shard by shard as they were generated."""

import math
from typing import Any

import pyarrow as pa

from data import schemas, store
from pco import progress, rewards
from pco.progress import Progress
from pco.rewards import Reward
from pco.stage import Stage


def run(stage: Stage) -> store.Manifest:
    """Write the `scores` table. Candidates whose reward is not a finite number are dropped and counted."""
    started = stage.launched()
    source = stage.inputs["candidates"].folder
    shards = store.parts(source, "candidates")
    reward = rewards.load(stage.config.reward)
    candidates = sum(shard.rows for shard in shards)
    done = 0
    for i, shard in enumerate(shards):
        if not store.has_part(stage.folder, "scores", i, stage.fingerprint):
            table = _scored(store.read_part(source, shard), reward)
            store.write_part(stage.folder, "scores", i, table, stage.fingerprint, of=len(shards))
        done += shard.rows
        progress.report(Progress(done, candidates, "candidates"))
    scored = store.read_parts(stage.folder, "scores", stage.fingerprint).num_rows
    return stage.finish(
        unit="candidates",
        rows_in=candidates,
        rows_out=scored,
        dropped={"reward is not finite": candidates - scored},
        started=started,
    )


def _scored(candidates: pa.Table, reward: Reward) -> pa.Table:
    rows: list[dict[str, Any]] = candidates.to_pylist()
    scores = [
        {"prompt_id": row["prompt_id"], "sample": row["sample"], "reward": value, "reward_model": reward.digest}
        for row, value in zip(rows, reward.score(rows), strict=True)
        if math.isfinite(value)
    ]
    return schemas.build("scores", scores)
