"""Pairs of earlier rounds, mixed in with a round's own: the paper trains on each round's pairs beside those it has."""

import math
from pathlib import Path
from typing import Any

from data import schemas, store
from pco.seeds import seed_of
from pco.stage import Stage

Row = dict[str, Any]
_UNIT = 2**31  # seeds lie below


def write(stage: Stage, *, fresh: int) -> int:
    """Write the stage's `replay` table if its inputs hold earlier rounds; returns its number of rows.

    At most `share` pairs for each of the `fresh` ones, drawn without replacement; a pair made a rounds ago has the
    weight 2^(-a / half_life). A pair that is there already, fresh or replayed, is not drawn.
    """
    earlier = [(number, row) for number in range(stage.round) for row in _pairs(stage, number)]
    if not earlier:
        return 0
    # Efraimidis and Spirakis: the largest u^(1/weight), here as logarithms, are a weighted sample.
    ranked = sorted(earlier, key=lambda one: -_luck(stage, *one))
    seen = {_content(row) for row in store.read_parts(stage.folder, "pairs", stage.fingerprint).to_pylist()}
    drawn: list[Row] = []
    for number, row in ranked:
        if len(drawn) >= int(stage.config.replay.share * fresh):
            break
        if (content := _content(row)) not in seen:
            seen.add(content)
            drawn.append({**row, "round": number})
    store.write_part(stage.folder, "replay", 0, schemas.build("replay", drawn), stage.fingerprint)
    return len(drawn)


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


def _content(row: Row) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    return row["prompt_id"], tuple(row["chosen_token_ids"]), tuple(row["rejected_token_ids"])
