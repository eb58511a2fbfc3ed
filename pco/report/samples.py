"""Sample completions: the pairs at both ends of the margin, and how held-out completions changed."""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from data import store
from pco.models.sampling import GREEDY
from pco.report.numbers import HeldoutChange, HeldoutChanges, PairStatistics, SamplePair

SHOWN = 3  # of each kind
_SHOWN_COLUMNS = ["prompt_id", "prompt", "chosen", "rejected", "chosen_reward", "rejected_reward"]

Prompts = Mapping[str, Mapping[str, Any]]


def statistics(folder: Path, prompts: Prompts) -> PairStatistics:
    """Means over a round's pairs, and the pairs with the largest and the smallest reward margin."""
    table = store.read_table(folder, "pairs")
    rows = table.select(_SHOWN_COLUMNS).to_pylist()
    ranked = sorted(rows, key=lambda row: row["rejected_reward"] - row["chosen_reward"])
    # No pair is shown twice.
    largest, smallest = ranked[:SHOWN], ranked[SHOWN:][-SHOWN:][::-1]
    return PairStatistics(
        chosen_reward=fmean(row["chosen_reward"] for row in rows),
        rejected_reward=fmean(row["rejected_reward"] for row in rows),
        chosen_length=_mean_length(table, "chosen_token_ids"),
        rejected_length=_mean_length(table, "rejected_token_ids"),
        largest=[_pair(row, prompts) for row in largest],
        smallest=[_pair(row, prompts) for row in smallest],
    )


def _mean_length(table: Any, column: str) -> float:
    return fmean(len(tokens) for tokens in table.column(column).to_pylist())


def _pair(row: dict[str, Any], prompts: Prompts) -> SamplePair:
    columns = ("chosen", "rejected", "chosen_reward", "rejected_reward")
    return SamplePair(_as_written(row, prompts), **{column: row[column] for column in columns})


def _as_written(row: Mapping[str, Any], prompts: Prompts) -> str:
    """The prompt as the user wrote it rather than as rendered for the policy."""
    text: str = prompts.get(row["prompt_id"], row)["prompt"]
    return text


def changes(number: int, before: Path, after: Path, prompts: Prompts) -> HeldoutChanges:
    """Compare the greedy completions of two evaluations, prompt by prompt; `number` is the later one's round."""
    old, new = _greedy(before), _greedy(after)
    changed = [_change(old[key], new[key], prompts) for key in old if key in new]
    ranked = sorted(changed, key=lambda change: -change.gain)
    improved = [change for change in ranked if change.gain > 0]
    worsened = [change for change in reversed(ranked) if change.gain < 0]
    return HeldoutChanges(
        round=number,
        improved=len(improved),
        equal=len(changed) - len(improved) - len(worsened),
        worsened=len(worsened),
        most_improved=improved[:SHOWN],
        most_worsened=worsened[:SHOWN],
    )


def _greedy(folder: Path) -> dict[str, dict[str, Any]]:
    """The greedy completion and its reward by prompt."""
    table = store.read_table(folder, "candidates").select(["prompt_id", "mode", "prompt", "completion"])
    rewards = {
        row["prompt_id"]: row["value"]
        for row in store.read_table(folder, "evaluations").to_pylist()
        if row["measure"] == "reward" and row["mode"] == GREEDY
    }
    rows = [row for row in table.to_pylist() if row["mode"] == GREEDY and row["prompt_id"] in rewards]
    return {row["prompt_id"]: {**row, "reward": rewards[row["prompt_id"]]} for row in rows}


def _change(old: dict[str, Any], new: dict[str, Any], prompts: Prompts) -> HeldoutChange:
    return HeldoutChange(_as_written(old, prompts), old["completion"], new["completion"], old["reward"], new["reward"])
