"""Pairs of earlier rounds, mixed in with a round's own: the paper trains on each round's pairs beside those it has."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from data import schemas, store
from pco import progress, rewards
from pco.progress import Progress
from pco.rewards import Reward
from pco.rewards.scores import Score
from pco.seeds import seed_of
from pco.stage import Shard, Stage

Row = dict[str, Any]
_UNIT = 2**31  # seeds lie below
_SIDES = ("chosen", "rejected")


def write(stage: Stage, *, fresh: int) -> dict[str, float]:
    """Write the stage's `replay` table if its inputs hold earlier rounds; returns how many pairs were `replayed`.

    At most `share` pairs for each of the `fresh` ones are drawn without replacement; a pair made a rounds ago has the
    weight 2^(-a / half_life). A pair that is there already, fresh or replayed, is not drawn. Where the drawn ones are
    judged anew, it is told how many `turned`, and how many were `undecided` and left out.
    """
    earlier = [(number, row) for number in range(stage.round) for row in _pairs(stage, number)]
    if not earlier:
        return {"replayed": 0}
    drawn = _drawn(stage, earlier, fresh)
    size = stage.config.generate.shard_size
    shards = [drawn[i : i + size] for i in range(0, len(drawn), size)] or [[]]

    @cache
    def reward() -> Reward:
        rewards.check_unchanged(stage)
        return rewards.load(stage.config.reward, stage.config.folder)

    def make(index: int) -> Shard:
        rows: list[Row] = shards[index]
        counts: dict[str, float] = {}
        if stage.config.replay.rescore:
            rows, counts = _rescored(stage, rows, reward())
        return Shard(schemas.build("replay", rows), counts=counts)

    for index in stage.shards("replay", len(shards), make):
        progress.report(Progress(index + 1, len(shards), "replayed shards"))
    replayed = store.read_parts(stage.folder, "replay", stage.fingerprint).num_rows
    return {"replayed": replayed, **_told(store.counted(stage.folder, "replay", stage.fingerprint))}


def _drawn(stage: Stage, earlier: list[tuple[int, Row]], fresh: int) -> list[Row]:
    """At most `share` of what earlier rounds made, by weight."""
    # Efraimidis and Spirakis: the largest u^(1/weight), here as logarithms, are a weighted sample.
    ranked = sorted(earlier, key=lambda one: -_luck(stage, *one))
    content_of = _content_either_way if stage.config.replay.rescore else _content
    seen = {content_of(row) for row in store.read_parts(stage.folder, "pairs", stage.fingerprint).to_pylist()}
    drawn: list[Row] = []
    for number, row in ranked:
        if len(drawn) >= int(stage.config.replay.share * fresh):
            break
        if (content := content_of(row)) not in seen:
            seen.add(content)
            drawn.append({**row, "round": number})
    return drawn


def _rescored(stage: Stage, pairs: list[Row], reward: Reward) -> tuple[list[Row], dict[str, float]]:
    """The pairs as the run's reward has them, the better text chosen, and what was counted on the way."""
    reward.counts.clear()
    rows, counts = [], Counter[str](turned=0, undecided=0)
    for pair, (chosen, rejected) in _judged(stage, pairs, reward):
        if chosen.dropped or rejected.dropped or chosen.value == rejected.value:
            counts["undecided"] += 1
            continue
        scored = {**pair, "chosen_reward": chosen.value, "rejected_reward": rejected.value}
        counts["turned"] += chosen.value < rejected.value
        rows.append(_turned(scored) if chosen.value < rejected.value else scored)
    return rows, {**counts, **reward.counts}


def _judged(stage: Stage, pairs: list[Row], reward: Reward) -> Iterator[tuple[Row, tuple[Score, Score]]]:
    """Each pair with the scores of its texts. A judge compares all texts of a prompt: so it sees one pair of each."""
    before, turns = Counter[str](), defaultdict[int, list[Row]](list)
    for pair in pairs:
        turns[before[pair["prompt_id"]]].append(pair)
        before[pair["prompt_id"]] += 1
    for turn in turns.values():
        scores = iter(rewards.judge(reward, stage, [_candidate(pair, side) for pair in turn for side in _SIDES]))
        yield from zip(turn, zip(scores, scores, strict=True), strict=True)


def _candidate(pair: Row, side: str) -> Row:
    """One text of a pair as a row of `candidates`; what a pair does not tell of it (how it was sampled) is None."""
    told = {name: pair[name] for name in ("prompt_id", "prompt", "prompt_token_ids", "policy")}
    own = {"completion": pair[side], "token_ids": pair[f"{side}_token_ids"], "sample": pair[f"{side}_sample"]}
    return dict.fromkeys(schemas.SCHEMAS["candidates"].names) | told | own


def _turned(pair: Row) -> Row:
    other = dict(zip(_SIDES, reversed(_SIDES), strict=True))
    return {re.sub(r"^(chosen|rejected)", lambda side: other[side[0]], name): value for name, value in pair.items()}


def _told(counts: Mapping[str, float]) -> dict[str, float]:
    return {name: counts[name] for name in ("turned", "undecided") if name in counts} | rewards.metrics(counts)


def rows_of(folder: Path) -> list[Row]:
    """All that a finished `pair` stage gives to learn from: its own pairs, then the replayed ones."""
    tables = ["pairs", *(["replay"] if store.has_table(folder, "replay") else [])]
    return [row for table in tables for row in store.read_table(folder, table).to_pylist()]


def input_name(number: int) -> str:
    """What a round's pairs are called among the inputs of a later round's `pair` stage."""
    return f"pairs_of_round_{number}"


def _pairs(stage: Stage, number: int) -> list[Row]:
    source = stage.inputs.get(input_name(number))
    table = "pairs" if number else "preferences"
    rows: list[Row] = [] if source is None else store.read_table(source.folder, table).to_pylist()
    return rows


def _luck(stage: Stage, number: int, row: Row) -> float:
    half_life = stage.config.replay.half_life
    weight = 1.0 if half_life is None else 2.0 ** (-(stage.round - number) / half_life)
    pair = (row["prompt_id"], row["chosen_sample"], row["rejected_sample"])
    uniform = (seed_of(stage.config.seed, stage.round, number, *pair) + 1) / (_UNIT + 1)
    return math.log(uniform) / weight


def _content(row: Row) -> Hashable:
    return row["prompt_id"], tuple(row["chosen_token_ids"]), tuple(row["rejected_token_ids"])


def _content_either_way(row: Row) -> Hashable:
    """Pairs that are judged anew say the same whichever text was preferred before."""
    return row["prompt_id"], frozenset(tuple(row[f"{side}_token_ids"]) for side in _SIDES)
