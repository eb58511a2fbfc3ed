"""Stage `score`: the reward judges every candidate, shard by shard as they were generated."""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from data import schemas, store
from pco import progress, rewards
from pco.progress import Progress
from pco.rewards import NOT_FINITE, Reward, Score
from pco.stage import Stage


def run(stage: Stage) -> store.Manifest:
    """Write the `scores` table. Candidates that get no finite reward are dropped and counted by reason."""
    started = stage.launched()
    source = stage.inputs["candidates"].folder
    shards = store.parts(source, "candidates")
    candidates = sum(shard.rows for shard in shards)
    done = 0

    @cache
    def reward() -> Reward:
        rewards.check_unchanged(stage)
        return rewards.load(stage.config.reward, stage.config.folder)

    for i, shard in enumerate(shards):
        if not store.has_part(stage.folder, "scores", i, stage.fingerprint):
            rows = store.read_part(source, shard).to_pylist()
            reward().counts.clear()
            _commit(stage, i, len(shards), rows, rewards.judge(reward(), stage, rows), reward())
        done += shard.rows
        progress.report(Progress(done, candidates, "candidates"))
    return stage.finish(
        unit="candidates",
        rows_in=candidates,
        rows_out=store.read_parts(stage.folder, "scores", stage.fingerprint).num_rows,
        dropped={NOT_FINITE: 0, **store.dropped_rows(stage.folder, "scores", stage.fingerprint)},
        started=started,
        metrics=rewards.metrics(store.counted(stage.folder, "scores", stage.fingerprint)),
    )


def _commit(
    stage: Stage, shard: int, of: int, candidates: list[dict[str, Any]], scores: Sequence[Score], reward: Reward
) -> None:
    dropped = Counter(score.dropped for score in scores if score.dropped)
    rows = [
        {
            "prompt_id": row["prompt_id"],
            "sample": row["sample"],
            "reward": score.value,
            "reward_model": reward.digest,
            "members": score.members,
        }
        for row, score in zip(candidates, scores, strict=True)
        if not score.dropped
    ]
    table = schemas.build("scores", rows)
    store.write_part(
        stage.folder, "scores", shard, table, stage.fingerprint, of=of, dropped=dropped, counts=reward.counts
    )
