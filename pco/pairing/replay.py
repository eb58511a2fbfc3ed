"""Pairs of earlier rounds, mixed in with a round's own: the paper adds each round's pairs to the earlier ones."""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator
from functools import cache
from pathlib import Path
from typing import Literal

from data import schemas, store
from data.rows import ReplayRow, TrainingPairRow
from pco import rewards
from pco.rewards import Reward
from pco.rewards.scores import Candidate, Score
from pco.seeds import seed_of
from pco.sharding import OnDone, Shard
from pco.stage import Stage

Side = Literal["chosen", "rejected"]

_SEEDS = 2**31  # seeds are smaller


def write(stage: Stage, *, fresh: int) -> dict[str, float]:
    """Write the stage's `replay` table if its inputs hold earlier rounds; returns how many pairs were `replayed`.

    At most `share` pairs for each of the `fresh` ones, or all, are drawn without replacement; a pair made a rounds ago
    has the weight 2^(-a / half_life). A pair that is there already, fresh or replayed, is not drawn. Where the drawn
    pairs are scored again, the result also counts those that `turned`, and those that were `undecided` and left out.
    """
    earlier: list[ReplayRow] = []
    for number in range(stage.round):
        earlier += _pairs_of_round(stage, number)
    if not earlier:
        return {"replayed": 0}
    drawn = _drawn(stage, earlier, fresh)
    size = stage.config.generate.shard_size
    shards = [drawn[i : i + size] for i in range(0, len(drawn), size)] or [[]]

    @cache
    def reward() -> Reward:
        rewards.check_unchanged(stage)
        return rewards.load(stage.config.reward, stage.config.folder)

    def make(index: int, _: OnDone) -> Shard:
        rows = shards[index]
        counts: dict[str, float] = {}
        if stage.config.replay.rescore:
            rows, counts = _rescored(stage, rows, reward())
        return Shard(schemas.build("replay", rows), counts=counts)

    for _ in stage.shards("replay", [1] * len(shards), make, unit="replayed shards"):
        pass
    replayed = store.read_parts(stage.folder, "replay", stage.fingerprint).num_rows
    counts = store.counted(stage.folder, "replay", stage.fingerprint)
    rescored: dict[str, float] = {name: counts[name] for name in ("turned", "undecided") if name in counts}
    return {"replayed": replayed, **rescored, **rewards.metrics(counts)}


def _drawn(stage: Stage, earlier: list[ReplayRow], fresh: int) -> list[ReplayRow]:
    """At most `share` pairs of earlier rounds for each fresh pair, sampled by weight."""
    share = stage.config.replay.share
    limit = len(earlier) if share == "all" else int(share * fresh)
    ranked = sorted(earlier, key=lambda pair: -_sampling_key(stage, pair))
    content_of = _unordered_content if stage.config.replay.rescore else _content
    seen = {content_of(pair) for pair in store.read_parts(stage.folder, "pairs", stage.fingerprint).to_pylist()}
    drawn: list[ReplayRow] = []
    for pair in ranked:
        if len(drawn) >= limit:
            break
        if (content := content_of(pair)) not in seen:
            seen.add(content)
            drawn.append(pair)
    return drawn


def _rescored(stage: Stage, pairs: list[ReplayRow], reward: Reward) -> tuple[list[ReplayRow], dict[str, float]]:
    """The pairs with the run's rewards, the better text as the chosen one, and the counts of that."""
    reward.counts.clear()
    rows, counts = list[ReplayRow](), Counter[str](turned=0, undecided=0)
    for pair, (chosen, rejected) in _with_scores(stage, pairs, reward):
        if chosen.dropped or rejected.dropped or chosen.value == rejected.value:
            counts["undecided"] += 1
            continue
        scored: ReplayRow = {**pair, "chosen_reward": chosen.value, "rejected_reward": rejected.value}
        counts["turned"] += chosen.value < rejected.value
        rows.append(_turned(scored) if chosen.value < rejected.value else scored)
    return rows, {**counts, **reward.counts}


def _with_scores(
    stage: Stage, pairs: list[ReplayRow], reward: Reward
) -> Iterator[tuple[ReplayRow, tuple[Score, Score]]]:
    """Each pair with the scores of its two texts.

    A judge compares all texts of a prompt that it gets together. So no batch holds two pairs of one prompt.
    """
    pairs_of_prompt, batches = Counter[str](), defaultdict[int, list[ReplayRow]](list)
    for pair in pairs:
        batches[pairs_of_prompt[pair["prompt_id"]]].append(pair)
        pairs_of_prompt[pair["prompt_id"]] += 1
    for batch in batches.values():
        candidates: list[Candidate] = []
        for pair in batch:
            candidates += [_candidate(pair, "chosen"), _candidate(pair, "rejected")]
        scores = iter(rewards.score_rows(reward, stage, candidates))
        yield from zip(batch, zip(scores, scores, strict=True), strict=True)


def _candidate(pair: ReplayRow, side: Side) -> Candidate:
    """One text of a pair as a row of `candidates`; the columns that a pair does not have are None."""
    is_chosen = side == "chosen"
    return {
        "prompt_id": pair["prompt_id"],
        "mode": None,
        "sample": pair["chosen_sample"] if is_chosen else pair["rejected_sample"],
        "prompt": pair["prompt"],
        "prompt_token_ids": pair["prompt_token_ids"],
        "completion": pair[side],
        "token_ids": pair["chosen_token_ids"] if is_chosen else pair["rejected_token_ids"],
        "logprob": None,
        "finish_reason": None,
        "seed": None,
        "policy": pair["policy"],
    }


def _turned(pair: ReplayRow) -> ReplayRow:
    """The pair with chosen and rejected exchanged."""
    return {
        **pair,
        "chosen": pair["rejected"],
        "rejected": pair["chosen"],
        "chosen_token_ids": pair["rejected_token_ids"],
        "rejected_token_ids": pair["chosen_token_ids"],
        "chosen_sample": pair["rejected_sample"],
        "rejected_sample": pair["chosen_sample"],
        "chosen_reward": pair["rejected_reward"],
        "rejected_reward": pair["chosen_reward"],
    }


def rows_of(folder: Path) -> list[TrainingPairRow]:
    """The pairs of a finished `pair` stage that a round trains on: its own, then the replayed ones."""
    rows: list[TrainingPairRow] = store.read_table(folder, "pairs").to_pylist()
    if store.has_table(folder, "replay"):
        rows += store.read_table(folder, "replay").to_pylist()
    return rows


def input_name(number: int) -> str:
    """What a round's pairs are called among the inputs of a later round's `pair` stage."""
    return f"pairs_of_round_{number}"


def _pairs_of_round(stage: Stage, number: int) -> list[ReplayRow]:
    """The pairs of an earlier round; those of round 0 are the seed preferences."""
    source = stage.inputs.get(input_name(number))
    table = "pairs" if number else "preferences"
    if source is None or not (number or store.has_table(source.folder, table)):  # all seeds may be excluded
        return []
    rows: list[ReplayRow] = store.read_table(source.folder, table).to_pylist()
    for row in rows:
        row["round"] = number
    return rows


def _sampling_key(stage: Stage, pair: ReplayRow) -> float:
    """log(u) / weight with a uniform u of the pair's own: the pairs with the largest keys are a weighted sample.

    Source: Efraimidis and Spirakis (2006), whose keys are u^(1/weight).
    """
    half_life, number = stage.config.replay.half_life, pair["round"]
    weight = 1.0 if half_life is None else 2.0 ** (-(stage.round - number) / half_life)
    names = (pair["prompt_id"], pair["chosen_sample"], pair["rejected_sample"])
    uniform = (seed_of(stage.config.seed, stage.round, number, *names) + 1) / (_SEEDS + 1)
    return math.log(uniform) / weight


def _content(pair: ReplayRow) -> Hashable:
    return pair["prompt_id"], tuple(pair["chosen_token_ids"]), tuple(pair["rejected_token_ids"])


def _unordered_content(pair: ReplayRow) -> Hashable:
    """The same for both orders of two texts: a new score decides which one is chosen."""
    return pair["prompt_id"], frozenset((tuple(pair["chosen_token_ids"]), tuple(pair["rejected_token_ids"])))
