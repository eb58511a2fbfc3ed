"""Stage `score`: the reward judges every candidate."""

import math

from data import schemas, store
from pco import rewards
from pco.stage import Stage


def run(stage: Stage) -> store.Manifest:
    """Write the `scores` table. Candidates whose reward is not a finite number are dropped and counted."""
    started = stage.launched()
    candidates = store.read_table(stage.inputs["candidates"].folder, "candidates").to_pylist()
    reward = rewards.load(stage.config.reward)
    rows = [
        {"prompt_id": row["prompt_id"], "sample": row["sample"], "reward": value, "reward_model": reward.digest}
        for row, value in zip(candidates, reward.score(candidates), strict=True)
        if math.isfinite(value)
    ]
    store.write_part(stage.folder, "scores", 0, schemas.build("scores", rows), stage.fingerprint)
    return stage.finish(
        unit="candidates",
        rows_in=len(candidates),
        rows_out=len(rows),
        dropped={"reward is not finite": len(candidates) - len(rows)},
        started=started,
    )
