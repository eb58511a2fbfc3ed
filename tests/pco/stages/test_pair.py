"""Scored candidates become pairs; every prompt is a pair or counted with the reason why not."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import store
from data.errors import BadInput, CorruptArtifact
from data.readers import prompt_id
from pco.config.run import Pair
from pco.pairing import replay, strategies
from pco.pairing.strategies import Skipped
from pco.stage import Stage
from pco.stages import pair, score
from pco.stages.pair import Scored
from pco.training.batches import examples_of
from tests import builders

# Few values, so that ties are common; all exact in binary, so that margins are too.
reward_lists = st.lists(st.integers(-4, 0).map(lambda n: n / 4), min_size=0, max_size=6)
margins = st.integers(0, 5).map(lambda n: n / 4)


def scored(rewards: Sequence[float], texts: Sequence[str] | None = None) -> list[Scored]:
    return [
        Scored(row, reward, len(text.split()), text)
        for row, (reward, text) in enumerate(zip(rewards, texts or ["x"] * len(rewards), strict=True))
    ]


def pairs_of(rewards: Sequence[float], texts: Sequence[str] | None = None, seed: int = 0, **settings: Any) -> Any:
    """The pairs as (chosen, rejected) row numbers, or the reason for none."""
    made = strategies.pairs_of(scored(rewards, texts), Pair(**settings), seed=seed)
    return made.reason if isinstance(made, Skipped) else [(chosen.row, rejected.row) for chosen, rejected in made]


def candidates(rewards: Sequence[float], prompt: str = "p") -> list[dict[str, Any]]:
    return [{**builders.candidate_row(prompt, i, [i]), "reward": reward} for i, reward in enumerate(rewards)]


@given(rewards=reward_lists, min_margin=margins)
def test_a_pair_is_the_best_and_the_worst_or_there_is_a_reason(rewards: list[float], min_margin: float) -> None:
    made = pairs_of(rewards, min_margin=min_margin)
    if isinstance(made, str):
        assert len(rewards) < 2 or max(rewards) == min(rewards) or max(rewards) - min(rewards) < min_margin
        return
    ((chosen, rejected),) = made
    assert rewards[chosen] == max(rewards) > min(rewards) == rewards[rejected]
    assert rewards[chosen] - rewards[rejected] >= min_margin


@given(rewards=reward_lists)
def test_among_equals_the_earlier_sample_is_taken(rewards: list[float]) -> None:
    if isinstance(made := pairs_of(rewards), list):
        assert made == [(rewards.index(max(rewards)), rewards.index(min(rewards)))]


@given(
    rewards=reward_lists,
    min_margin=margins,
    strategy=st.sampled_from(["best_worst", "best_random", "halves"]),
    max_pairs=st.integers(1, 4),
    max_length_ratio=st.none() | st.floats(1, 3),
    max_similarity=st.floats(0, 1),
    lengths=st.lists(st.integers(1, 9), min_size=6, max_size=6),
    seed=st.integers(0, 9),
)
def test_whatever_the_strategy_every_pair_keeps_every_limit_and_no_pair_comes_twice(
    rewards: list[float], lengths: list[int], seed: int, **limits: Any
) -> None:
    texts = [" ".join("abcdefghi"[:length]) for length in lengths[: len(rewards)]]
    made = pairs_of(rewards, texts, seed, **limits)
    assert made == pairs_of(rewards, texts, seed, **limits)
    if isinstance(made, str):
        return
    assert 0 < len(made) <= limits["max_pairs"]
    assert len(set(made)) == len(made)
    for chosen, rejected in made:
        assert rewards[chosen] - rewards[rejected] >= max(limits["min_margin"], 0.25)
        shorter, longer = sorted((lengths[chosen], lengths[rejected]))
        assert limits["max_length_ratio"] is None or longer <= limits["max_length_ratio"] * shorter
        if limits["max_similarity"] < 1:
            assert strategies.similarity(texts[chosen], texts[rejected]) <= limits["max_similarity"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"strategy": "best_worst", "max_pairs": 9}, [(3, 0)]),
        ({"strategy": "halves", "max_pairs": 9}, [(3, 0), (2, 1)]),
        ({"strategy": "halves", "max_pairs": 1}, [(3, 0)]),
        ({"strategy": "halves", "max_pairs": 9, "min_margin": 2.0}, [(3, 0)]),
    ],
)
def test_the_strategies_pair_as_they_say(settings: dict[str, Any], expected: list[tuple[int, int]]) -> None:
    assert pairs_of([0.0, 1.0, 2.0, 3.0], **settings) == expected


def test_the_best_meets_others_by_chance_and_by_the_seed_alone() -> None:
    rewards = [5.0, 1.0, 2.0, 3.0, 4.0]
    drawn = {pairs_of(rewards, seed=seed, strategy="best_random")[0] for seed in range(99)}
    assert drawn == {(0, 1), (0, 2), (0, 3), (0, 4)}
    assert len(pairs_of(rewards, strategy="best_random", max_pairs=9)) == 4


def test_where_the_widest_pair_may_not_be_the_next_widest_is_taken() -> None:
    texts = ["a b c d e f", "a", "a b c d e", "a b c d e f"]
    assert pairs_of([4.0, 1.0, 2.0, 3.0], texts) == [(0, 1)]
    assert pairs_of([4.0, 1.0, 2.0, 3.0], texts, max_length_ratio=2) == [(0, 2)]
    assert pairs_of([4.0, 1.0, 2.0, 3.0], texts, max_length_ratio=1.1) == [(0, 3)]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [("", "", 1.0), ("a b c d", "a b c d", 1.0), ("a b c d", "b c d e", 1 / 3), ("a b", "c d", 0.0), ("a", "", 0.0)],
)
def test_similarity_is_the_share_of_common_trigrams(one: str, other: str, expected: float) -> None:
    assert strategies.similarity(one, other) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rewards", "settings", "reason"),
    [
        ([], {}, "fewer than two scored candidates"),
        ([-0.5], {}, "fewer than two scored candidates"),
        ([-0.5, -0.5], {}, "all candidates tie"),
        ([0.0, -0.0], {}, "all candidates tie"),
        ([-0.5, -0.25], {"min_margin": 0.5}, "margin below min_margin"),
        ([-0.5, -0.25], {"max_similarity": 0.5}, "more alike than max_similarity"),
    ],
)
def test_the_reason_for_no_pair_is_told(rewards: list[float], settings: dict[str, Any], reason: str) -> None:
    assert pairs_of(rewards, **settings) == reason
    assert pairs_of([1.0, 2.0], ["a b c", "a"], max_length_ratio=2) == "lengths differ more than max_length_ratio"


def test_a_margin_of_exactly_the_minimum_is_enough() -> None:
    assert pairs_of([-0.5, 0.0], min_margin=0.5) == [(1, 0)]


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
        with pytest.raises(BadInput, match=rf"none of {len(rewards)} prompts .*generate\.n"):
            pair.run(stage)
        assert store.read_manifest(stage.folder) is None
        return
    manifest = pair.run(stage)
    rows = store.read_table(stage.folder, "pairs").to_pylist()
    assert [row["prompt_id"] for row in rows] == [prompt_id(prompt) for prompt in expected]
    assert manifest.rows_in == len(rewards) == manifest.rows_out + sum(manifest.dropped.values())
    assert all(row["chosen_reward"] > row["rejected_reward"] for row in rows)


@pytest.mark.parametrize("strategy", ["halves", "best_random"])
def test_candidates_that_repeat_another_give_no_pair_again(tmp_path: Path, strategy: str) -> None:
    rewards = {"good": 1.0, "bad": 0.0}
    texts = ["good", "bad", "good", "bad"]
    rows = [builders.candidate_row("a", i, [1, i]) | {"completion": text} for i, text in enumerate(texts)]
    scores = [builders.score_row("a", i, rewards[text]) for i, text in enumerate(texts)]
    inputs = {
        "candidates": builders.finished(tmp_path / "candidates", {"candidates": rows}),
        "scores": builders.finished(tmp_path / "scores", {"scores": scores}),
    }
    stage = builders.stage("pair", builders.config(tmp_path, pair={"strategy": strategy, "max_pairs": 4}), inputs)
    pair.run(stage)
    (made,) = store.read_table(stage.folder, "pairs").to_pylist()
    assert (made["chosen_sample"], made["rejected_sample"]) == (0, 1)


def test_the_candidates_without_a_score_are_no_candidates_for_a_pair(tmp_path: Path) -> None:
    stage = stage_of(tmp_path, {"p": [0.0, -1.0], "q": [0.0, -1.0]})
    scores = [builders.score_row("p", 0, 0.0), builders.score_row("q", 0, 0.0), builders.score_row("q", 1, -1.0)]
    some = builders.finished(tmp_path / "some", {"scores": scores})
    manifest = pair.run(builders.stage("pair", stage.config, {**stage.inputs, "scores": some}))
    assert manifest.dropped == {"fewer than two scored candidates": 1}


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    stage = stage_of(tmp_path, {"p": [0.0, -1.0]})
    wrong = builders.stage("pair", stage.config, {**stage.inputs, "scores": stage.inputs["candidates"]})
    with pytest.raises(CorruptArtifact, match="`scores` table.* candidates"):
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


def test_pairs_are_made_shard_by_shard_and_the_split_changes_nothing(tmp_path: Path) -> None:
    rewards = {f"p{i}": [0.0, -float(i % 3)] for i in range(9)}
    whole = stage_of(tmp_path / "whole", rewards)
    pair.run(whole)
    inputs = {}
    for name, table in (("candidates", "candidates"), ("scores", "scores")):
        content = store.read_table(whole.inputs[name].folder, table)
        folder = tmp_path / "split" / name
        for i in range(3):
            store.write_part(folder, table, i, content.slice(6 * i, 6), "f" * 16, of=3)
        inputs[name] = builders.finished(folder, {})
    split = builders.stage("pair", builders.config(tmp_path / "split"), inputs)
    manifest = pair.run(split)
    assert len(manifest.parts) == 3
    assert store.read_table(split.folder, "pairs").equals(store.read_table(whole.folder, "pairs"))


def test_scores_of_other_shards_than_the_candidates_are_refused(tmp_path: Path) -> None:
    stage = stage_of(tmp_path, {"p": [0.0, -1.0]})
    scores = store.read_table(stage.inputs["scores"].folder, "scores")
    for i in range(2):
        store.write_part(tmp_path / "more", "scores", i, scores.slice(i, 1), "f" * 16, of=2)
    more = builders.stage("pair", stage.config, {**stage.inputs, "scores": builders.finished(tmp_path / "more", {})})
    with pytest.raises(CorruptArtifact, match="has 2 shards for 1 of candidates"):
        pair.run(more)


# The prompt's reference against the worst.


def by_reference(folder: Path, tiny: Path, references: dict[str, str | None], **settings: Any) -> Stage:
    """A pair stage whose prompts have these references, and three candidates each of rewards 0, -1 and -1."""
    stage = stage_of(folder, dict.fromkeys(references, [0.0, -1.0, -1.0]))
    rows = [{**builders.prompt_row(text), "reference": reference} for text, reference in references.items()]
    given = {"prompts": builders.finished(folder / "prompts", {"prompts": rows}), "policy": builders.model(tiny)}
    config = builders.config(folder, tiny, pair__strategy="reference_worst", **settings)
    return builders.stage("pair", config, {**stage.inputs, **given})


def test_a_reference_meets_the_worst_candidate_as_tokens_with_the_end_of_text(
    tmp_path: Path, tiny: Path, tokenizer: Any
) -> None:
    stage = by_reference(tmp_path, tiny, {"p": " the last ferry.", "q": None})
    manifest = pair.run(stage)
    assert manifest.dropped == {"no reference": 1}
    (made,) = store.read_table(stage.folder, "pairs").to_pylist()
    assert made["prompt_id"] == prompt_id("p") and made["prompt_token_ids"] == [7, 8] and made["policy"] == "digest"
    assert (made["chosen"], made["rejected"]) == (" the last ferry.", "1")
    assert tokenizer.decode(made["chosen_token_ids"]) == " the last ferry." + tokenizer.eos_token
    assert (made["chosen_sample"], made["rejected_sample"]) == (pair.REFERENCE, 1)
    assert math.isnan(made["chosen_reward"]) and made["rejected_reward"] == -1.0


def test_every_pair_with_a_reference_has_the_lowest_that_keeps_the_limits() -> None:
    def against(reference: str | None, texts: Sequence[str], **limits: Any) -> Any:
        answer = None if reference is None else Scored(99, math.nan, len(reference.split()), reference)
        rewards = [float(i) for i in range(len(texts))]
        made = strategies.pairs_with(answer, scored(rewards, texts), Pair(strategy="reference_worst", **limits))
        return made.reason if isinstance(made, Skipped) else [(chosen.row, rejected.row) for chosen, rejected in made]

    assert against("a b", ["x y z", "x y"]) == [(99, 0)]
    assert against("a b", ["x y z", "x y"], max_pairs=5) == [(99, 0), (99, 1)]
    assert against("a b", ["x y z", "x y"], max_length_ratio=1) == [(99, 1)]
    assert against("a b", ["x y z"], max_length_ratio=1) == "lengths differ more than max_length_ratio"
    assert against("a b c", ["a b c d", "x"], max_similarity=0.4) == [(99, 1)]
    assert against("a b", ["a  b\n", "x y"]) == [(99, 1)]  # what is the reference itself is not worse than it
    assert against("a b", ["a b"]) == "no scored candidate but the reference"
    assert against("a b", []) == "no scored candidate but the reference"
    assert against(None, ["x"]) == "no reference"


def test_pairs_with_references_are_replayed_and_told_apart(tmp_path: Path, tiny: Path) -> None:
    stage = by_reference(tmp_path, tiny, {"p": "a", "q": "b"}, pair__max_pairs=2)
    pair.run(stage)
    examples = examples_of(replay.rows_of(stage.folder))
    assert len({example.pair_id for example in examples}) == len(examples) == 4


def test_a_margin_to_references_is_refused() -> None:
    with pytest.raises(ValueError, match="min_margin .*reference_worst"):
        Pair(strategy="reference_worst", min_margin=0.1)
