"""Scored candidates become pairs; every prompt is a pair or counted with the reason why not."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import store
from data.errors import BadInput, CorruptArtifact
from data.readers import prompt_id
from pco import pair, score
from pco.config import Pair
from pco.stage import Stage
from tests import builders

# Few values, so that ties are common; all exact in binary, so that margins are too.
reward_lists = st.lists(st.integers(-4, 0).map(lambda n: n / 4), min_size=0, max_size=6)
margins = st.integers(0, 5).map(lambda n: n / 4)


def candidates(rewards: Sequence[float | None], prompt: str = "p") -> list[dict[str, Any]]:
    return [{**builders.candidate_row(prompt, i, [i]), "reward": reward} for i, reward in enumerate(rewards)]


@given(rewards=reward_lists, min_margin=margins)
def test_a_pair_is_the_best_and_the_worst_or_there_is_a_reason(rewards: list[float], min_margin: float) -> None:
    made = pair.best_worst(candidates(rewards), Pair(min_margin=min_margin))
    if isinstance(made, str):
        assert len(rewards) < 2 or max(rewards) == min(rewards) or max(rewards) - min(rewards) < min_margin
        return
    assert made["chosen_reward"] == max(rewards) > min(rewards) == made["rejected_reward"]
    assert made["chosen_reward"] - made["rejected_reward"] >= min_margin
    for side in ("chosen", "rejected"):
        sample = made[f"{side}_sample"]
        assert rewards[sample] == made[f"{side}_reward"]
        assert made[f"{side}_token_ids"] == [sample]
        assert made[side] == str(sample)


@given(rewards=reward_lists)
def test_among_equals_the_earlier_sample_is_taken(rewards: list[float]) -> None:
    made = pair.best_worst(candidates(rewards), Pair())
    if isinstance(made, dict):
        assert made["chosen_sample"] == rewards.index(max(rewards))
        assert made["rejected_sample"] == rewards.index(min(rewards))


@pytest.mark.parametrize(
    ("rewards", "reason"),
    [
        ([], "fewer than two scored candidates"),
        ([-0.5, None], "fewer than two scored candidates"),
        ([-0.5, None, -0.5], "all candidates tie"),
        ([0.0, -0.0], "all candidates tie"),
        ([-0.5, -0.25], "margin below min_margin"),
    ],
)
def test_the_reason_for_no_pair_is_told(rewards: list[float | None], reason: str) -> None:
    assert pair.best_worst(candidates(rewards), Pair(min_margin=0.5)) == reason


def test_a_margin_of_exactly_the_minimum_is_enough() -> None:
    assert isinstance(pair.best_worst(candidates([-0.5, 0.0]), Pair(min_margin=0.5)), dict)


def stage_of(folder: Path, rewards: dict[str, list[float]]) -> Stage:
    """A pair stage whose candidates have these rewards by prompt."""
    rows = [row for prompt, own in rewards.items() for row in candidates(own, prompt)]
    scores = [builders.score_row(row["prompt"], row["sample"], row["reward"]) for row in rows]
    plain = [{name: value for name, value in row.items() if name != "reward"} for row in rows]
    inputs = {
        "candidates": builders.finished(folder / "candidates", {"candidates": plain}),
        "scores": builders.finished(folder / "scores", {"scores": scores}),
    }
    return builders.stage("pair", builders.config(folder), inputs)


@settings(max_examples=30)  # each waits for the disk
@given(rewards=st.dictionaries(st.text("abc", min_size=1), reward_lists.filter(bool), min_size=1, max_size=6))
def test_every_prompt_is_a_pair_or_dropped_and_counted(
    tmp_path_factory: pytest.TempPathFactory, rewards: dict[str, list[float]]
) -> None:
    stage = stage_of(tmp_path_factory.mktemp("pair"), rewards)
    expected = [prompt for prompt, own in rewards.items() if len(set(own)) > 1]
    if not expected:
        with pytest.raises(BadInput, match=f"none of {len(rewards)} prompts gave a pair .* Raise generate.n"):
            pair.run(stage)
        assert store.read_manifest(stage.folder) is None
        return
    manifest = pair.run(stage)
    rows = store.read_table(stage.folder, "pairs").to_pylist()
    assert [row["prompt_id"] for row in rows] == [prompt_id(prompt) for prompt in expected]
    assert manifest.rows_in == len(rewards) == manifest.rows_out + sum(manifest.dropped.values())
    assert all(row["chosen_reward"] > row["rejected_reward"] for row in rows)


def test_the_candidates_without_a_score_are_no_candidates_for_a_pair(tmp_path: Path) -> None:
    stage = stage_of(tmp_path, {"p": [0.0, -1.0], "q": [0.0, -1.0]})
    scores = [builders.score_row("p", 0, 0.0), builders.score_row("q", 0, 0.0), builders.score_row("q", 1, -1.0)]
    some = builders.finished(tmp_path / "some", {"scores": scores})
    manifest = pair.run(builders.stage("pair", stage.config, {**stage.inputs, "scores": some}))
    assert manifest.dropped == {"fewer than two scored candidates": 1}


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    stage = stage_of(tmp_path, {"p": [0.0, -1.0]})
    wrong = builders.stage("pair", stage.config, {**stage.inputs, "scores": stage.inputs["candidates"]})
    with pytest.raises(CorruptArtifact, match="holds no `scores` table; it has candidates"):
        pair.run(wrong)


def test_scores_and_pairs_follow_from_candidates_alone(tmp_path: Path) -> None:
    rows = [builders.candidate_row("p", 0, [1, 1, 1, 1, 1]), builders.candidate_row("p", 1, [1, 2, 3, 4, 5])]
    found = builders.finished(tmp_path / "candidates", {"candidates": rows})
    config = builders.config(tmp_path)
    scoring = builders.stage("score", config, {"candidates": found})
    assert score.run(scoring).dropped == {"reward is not finite": 0}
    pairing = builders.stage("pair", config, {"candidates": found, "scores": builders.result(scoring)})
    pair.run(pairing)
    (made,) = store.read_table(pairing.folder, "pairs").to_pylist()
    assert (made["chosen_sample"], made["rejected_sample"]) == (1, 0)
