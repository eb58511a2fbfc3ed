"""Stage `pair`: scored candidates become preference pairs."""

from collections import Counter
from itertools import groupby
from typing import Any

from data import schemas, store
from data.errors import BadInput
from pco.config import Pair
from pco.stage import Stage

Row = dict[str, Any]


def run(stage: Stage) -> store.Manifest:
    """Write the `pairs` table: at most one pair per prompt; what gives none is counted by reason.

    Raises BadInput when no prompt gives a pair: there would be nothing to train on.
    """
    started = stage.launched()
    prompts = _scored(stage)
    made = [best_worst(rows, stage.config.pair) for rows in prompts]
    pairs = [pair for pair in made if isinstance(pair, dict)]
    dropped = Counter(reason for reason in made if isinstance(reason, str))
    if not pairs:
        raise BadInput(
            f"{stage.title}: none of {len(prompts)} prompts gave a pair ({dict(dropped)}). Raise generate.n or "
            "generate.temperature so that candidates differ, or lower pair.min_margin."
        )
    store.write_part(stage.folder, "pairs", 0, schemas.build("pairs", pairs), stage.fingerprint)
    return stage.finish(
        unit="prompts",
        rows_in=len(prompts),
        rows_out=len(pairs),
        dropped=dropped,
        started=started,
    )


def _scored(stage: Stage) -> list[list[Row]]:
    """Candidates with their rewards, grouped by prompt in the order of the candidates table."""
    candidates = store.read_table(stage.inputs["candidates"].folder, "candidates").to_pylist()
    scores = store.read_table(stage.inputs["scores"].folder, "scores").to_pylist()
    rewards = {(row["prompt_id"], row["sample"]): row["reward"] for row in scores}
    rows = [{**row, "reward": rewards.get((row["prompt_id"], row["sample"]))} for row in candidates]
    return [list(group) for _, group in groupby(rows, key=lambda row: row["prompt_id"])]


def best_worst(candidates: list[Row], config: Pair) -> Row | str:
    """The best against the worst candidate of one prompt, or the reason why there is no pair.

    Ties never become a pair: equal scores say nothing. Among equals the earlier sample is taken.
    """
    scored = [row for row in candidates if row["reward"] is not None]
    if len(scored) < 2:
        return "fewer than two scored candidates"
    best = max(scored, key=lambda row: row["reward"])
    worst = min(scored, key=lambda row: row["reward"])
    margin = best["reward"] - worst["reward"]
    if margin == 0:
        return "all candidates tie"
    if margin < config.min_margin:
        return "margin below min_margin"
    return {
        "prompt_id": best["prompt_id"],
        "prompt": best["prompt"],
        "prompt_token_ids": best["prompt_token_ids"],
        "policy": best["policy"],
        **{f"chosen{suffix}": best[column] for suffix, column in _SIDES.items()},
        **{f"rejected{suffix}": worst[column] for suffix, column in _SIDES.items()},
    }


_SIDES = {"": "completion", "_token_ids": "token_ids", "_sample": "sample", "_reward": "reward"}
