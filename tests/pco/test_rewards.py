"""Rewards, and the stage that gives them."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import store
from pco import rewards, score
from pco.config import RepetitionReward
from pco.rewards import Reward, repeated_share
from tests import builders

tokens = st.lists(st.integers(0, 3), max_size=14)
ngrams = st.integers(1, 4)


def brute_force(text: list[int], n: int) -> float:
    """Count the n-grams that stand somewhere before, one by one."""
    grams = [text[i : i + n] for i in range(len(text)) if len(text[i : i + n]) == n]
    repeated = sum(any(grams[j] == grams[i] for j in range(i)) for i in range(len(grams)))
    return repeated / len(grams) if grams else 0.0


@given(text=tokens, n=ngrams)
def test_the_repeated_share_is_what_counting_one_by_one_gives(text: list[int], n: int) -> None:
    assert repeated_share(text, n) == pytest.approx(brute_force(text, n), abs=1e-12)


@given(text=tokens, n=ngrams)
def test_the_repeated_share_is_a_share_and_0_only_without_repetition(text: list[int], n: int) -> None:
    share = repeated_share(text, n)
    assert 0 <= share < 1
    assert (share == 0) == (brute_force(text, n) == 0)


@given(text=tokens, n=ngrams, shift=st.integers(1, 9))
def test_only_equality_of_tokens_counts(text: list[int], n: int, shift: int) -> None:
    assert repeated_share([token + shift for token in text], n) == repeated_share(text, n)


@pytest.mark.parametrize(
    ("text", "n", "share"), [([], 3, 0), ([1, 2], 3, 0), ([1, 2, 3], 3, 0), ([5] * 4, 3, 0.5), ([5] * 102, 3, 0.99)]
)
def test_examples_by_hand(text: list[int], n: int, share: float) -> None:
    assert repeated_share(text, n) == pytest.approx(share)


@given(batch=st.lists(tokens, max_size=4), n=ngrams)
def test_the_repetition_reward_is_minus_the_repeated_share_of_each_candidate(batch: list[list[int]], n: int) -> None:
    reward = rewards.load(RepetitionReward(ngram=n))
    scored = reward.score([builders.candidate_row(tokens=text) for text in batch])
    assert scored == [-repeated_share(text, n) for text in batch]
    assert not any(math.copysign(1, value) < 0 for value in scored if value == 0)


def test_rewards_that_score_differently_have_different_digests() -> None:
    digests = {rewards.load(RepetitionReward(ngram=n)).digest for n in (1, 2, 3)}
    assert len(digests) == 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_drops_the_candidate_and_counts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    monkeypatch.setattr(rewards, "load", lambda _: Reward("fake", lambda batch: [0.5, value, -0.5][: len(batch)]))
    rows = [builders.candidate_row("p", sample) for sample in range(3)]
    stage = builders.stage(
        "score",
        builders.config(tmp_path),
        {"candidates": builders.finished(tmp_path / "candidates", {"candidates": rows})},
    )
    manifest = score.run(stage)
    assert (manifest.rows_in, manifest.rows_out, manifest.dropped) == (3, 2, {"reward is not finite": 1})
    kept = store.read_table(stage.folder, "scores").to_pylist()
    assert [(row["sample"], row["reward"]) for row in kept] == [(0, 0.5), (2, -0.5)]
    assert {row["reward_model"] for row in kept} == {"fake"}


def test_a_reward_that_loses_a_candidate_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "load", lambda _: Reward("fake", lambda batch: [0.0] * (len(batch) - 1)))
    found = builders.finished(tmp_path / "candidates", {"candidates": [builders.candidate_row()]})
    with pytest.raises(ValueError, match="shorter"):
        score.run(builders.stage("score", builders.config(tmp_path), {"candidates": found}))
