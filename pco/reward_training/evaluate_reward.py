"""Stage `evaluate_reward`: the trained model scores the held-out pairs, with the code that scores candidates."""

from collections import Counter
from functools import cache
from typing import TypedDict

from data import schemas, store
from data.rows import Message, RewardTestRow
from pco import rewards
from pco.config.reward import ModelReward
from pco.config.reward_training import RewardTraining
from pco.reward_training import accuracy
from pco.reward_training.order import verified
from pco.reward_training.pairs import HELDOUT
from pco.rewards import Reward, Score
from pco.rewards.scores import Candidate
from pco.sharding import Shard
from pco.stage import Stage

_SHARD_PAIRS = 256


class _HeldoutPair(TypedDict):
    """The columns of `reward_pairs` that are needed here; token ids would take much memory."""

    split: str
    prompt_id: str
    prompt: str
    chosen: str
    rejected: str
    chosen_length: int
    rejected_length: int
    messages: list[Message] | None


def run(stage: Stage[RewardTraining]) -> store.Manifest:
    """Write the `reward_tests` table, shard by shard; pairs with a reward that is not finite are counted."""
    started = stage.launched()
    model = verified(stage).folder
    table = store.read_table(stage.inputs["pairs"].folder, "reward_pairs").select(list(_HeldoutPair.__annotations__))
    rows: list[_HeldoutPair] = [row for row in table.to_pylist() if row["split"] == HELDOUT]
    shards = [rows[start : start + _SHARD_PAIRS] for start in range(0, len(rows), _SHARD_PAIRS)]

    @cache
    def reward() -> Reward:
        return rewards.load(ModelReward(model=str(model)))

    for _ in stage.shards(
        "reward_tests", list(map(len, shards)), lambda index, _: _compared(shards[index], reward()), unit="pairs"
    ):
        pass
    tested = store.read_parts(stage.folder, "reward_tests", stage.fingerprint)
    return stage.finish(
        unit="held-out pairs",
        rows_in=len(rows),
        rows_out=tested.num_rows,
        dropped=store.dropped_rows(stage.folder, "reward_tests", stage.fingerprint),
        started=started,
        metrics=accuracy.measured(tested.to_pylist()).metrics,
    )


def _compared(rows: list[_HeldoutPair], reward: Reward) -> Shard:
    """The rewards of both texts of each pair."""
    scores = _scores(rows, reward)
    dropped: Counter[str] = Counter()
    tested: list[RewardTestRow] = []
    for row in rows:
        chosen, rejected = scores[row["prompt_id"], row["chosen"]], scores[row["prompt_id"], row["rejected"]]
        reason = chosen.dropped or rejected.dropped
        if reason:
            dropped[reason] += 1
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
    return Shard(schemas.build("reward_tests", tested), dropped)


def _scores(rows: list[_HeldoutPair], reward: Reward) -> dict[tuple[str, str], Score]:
    """The score of each text by its prompt's id and itself; a text of several pairs is scored once."""
    texts: dict[tuple[str, str], Candidate] = {}  # in order
    for row in rows:
        for completion in (row["chosen"], row["rejected"]):
            texts[row["prompt_id"], completion] = {
                "source_prompt": row["prompt"],
                "messages": row["messages"],
                "completion": completion,
            }
    return dict(zip(texts, reward.score(list(texts.values())), strict=True))
