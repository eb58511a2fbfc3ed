"""Stage `score`: the reward scores every candidate, in the shards in which they were generated."""

from collections import Counter
from collections.abc import Sequence
from functools import cache

from data import schemas, store
from data.rows import CandidateRow, ScoreRow
from pco import rewards
from pco.rewards import NOT_FINITE, Reward, Score
from pco.sharding import OnDone, Shard
from pco.stage import Stage


def run(stage: Stage) -> store.Manifest:
    """Write the `scores` table. Candidates without a finite reward are dropped and counted by reason."""
    started = stage.launched()
    source = stage.inputs["candidates"].folder
    shards = store.parts(source, "candidates")
    candidates = sum(shard.rows for shard in shards)

    @cache
    def reward() -> Reward:
        rewards.check_unchanged(stage)
        return rewards.load(stage.config.reward, stage.config.folder)

    def make(index: int, _: OnDone) -> Shard:
        rows: list[CandidateRow] = store.read_part(source, shards[index]).to_pylist()
        reward().counts.clear()
        return _scored(rows, rewards.score_rows(reward(), stage, rows), reward())

    sizes = [shard.rows for shard in shards]
    for _ in stage.shards("scores", sizes, make, unit="candidates", alone=rewards.asks_a_judge(stage.config.reward)):
        pass
    return stage.finish(
        unit="candidates",
        rows_in=candidates,
        rows_out=store.read_parts(stage.folder, "scores", stage.fingerprint).num_rows,
        dropped={NOT_FINITE: 0, **store.dropped_rows(stage.folder, "scores", stage.fingerprint)},
        started=started,
        metrics=rewards.metrics(store.counted(stage.folder, "scores", stage.fingerprint)),
    )


def _scored(candidates: list[CandidateRow], scores: Sequence[Score], reward: Reward) -> Shard:
    dropped = Counter(score.dropped for score in scores if score.dropped)
    rows: list[ScoreRow] = [
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
    return Shard(schemas.build("scores", rows), dropped, reward.counts)
