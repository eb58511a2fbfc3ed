"""Stage `test_reward`: the trained model scores the held-out pairs, by the code that scores candidates in a run."""

from collections import Counter
from typing import Any

from data import schemas, store
from pco import progress, rewards
from pco.config.reward import ModelReward
from pco.config.reward_training import RewardTraining
from pco.progress import Progress
from pco.reward_training import accuracy
from pco.reward_training.order import verified
from pco.reward_training.pairs import HELDOUT
from pco.rewards import Reward, Score
from pco.stage import Stage

_SHARD_PAIRS = 256

Row = dict[str, Any]


def run(stage: Stage[RewardTraining]) -> store.Manifest:
    """Write the `reward_tests` table, shard by shard; pairs with a reward that is not finite are counted."""
    started = stage.launched()
    model = verified(stage).folder
    table = store.read_table(stage.inputs["pairs"].folder, "reward_pairs").drop_columns(
        ["chosen_token_ids", "rejected_token_ids"]
    )
    rows = [row for row in table.to_pylist() if row["split"] == HELDOUT]
    reward = rewards.load(ModelReward(model=str(model)))
    starts = range(0, len(rows), _SHARD_PAIRS)
    for shard, start in enumerate(starts):
        some = rows[start : start + _SHARD_PAIRS]
        if not store.has_part(stage.folder, "reward_tests", shard, stage.fingerprint):
            _commit(stage, shard, len(starts), some, reward)
        progress.report(Progress(start + len(some), len(rows), "pairs"))
    tested = store.read_parts(stage.folder, "reward_tests", stage.fingerprint)
    return stage.finish(
        unit="held-out pairs",
        rows_in=len(rows),
        rows_out=tested.num_rows,
        dropped=store.dropped_rows(stage.folder, "reward_tests", stage.fingerprint),
        started=started,
        metrics=accuracy.measured(tested.to_pylist()).metrics,
    )


def _commit(stage: Stage[RewardTraining], shard: int, of: int, rows: list[Row], reward: Reward) -> None:
    scores = _scores(rows, reward)
    dropped: Counter[str] = Counter()
    tested = []
    for row in rows:
        chosen, rejected = (scores[row["prompt"], row[side]] for side in ("chosen", "rejected"))
        if why := chosen.dropped or rejected.dropped:
            dropped[why] += 1
            continue
        tested.append(
            {
                "prompt_id": row["prompt_id"],
                "reward_chosen": chosen.value,
                "reward_rejected": rejected.value,
                "length_chosen": row["chosen_length"],
                "length_rejected": row["rejected_length"],
                "reward_model": reward.digest,
            }
        )
    table = schemas.build("reward_tests", tested)
    store.write_part(stage.folder, "reward_tests", shard, table, stage.fingerprint, of=of, dropped=dropped)


def _scores(rows: list[Row], reward: Reward) -> dict[tuple[str, str], Score]:
    """Each text once, however many pairs it stands in."""
    texts = list(dict.fromkeys((row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")))
    found = reward.score([{"source_prompt": prompt, "completion": completion} for prompt, completion in texts])
    return dict(zip(texts, found, strict=True))
