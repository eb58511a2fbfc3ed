"""What an evaluation measures, against counting by hand."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import schemas
from pco import measures
from pco.measures import GREEDY, SAMPLED
from tests import builders

texts = st.lists(st.lists(st.integers(0, 3), max_size=8), max_size=5)
rewards = st.integers(-4, 0).map(lambda n: n / 4)


def evaluated(rewards_of: dict[tuple[str, str, int], float]) -> list[dict[str, Any]]:
    """Rows of an evaluation in which completions, named by mode, prompt and sample, got some rewards."""
    candidates = [builders.candidate_row(prompt, sample, mode=mode) for mode, prompt, sample in rewards_of]
    return measures.completion_rows(candidates, list(rewards_of.values()))


completions = st.dictionaries(
    st.tuples(st.sampled_from([GREEDY, SAMPLED]), st.sampled_from("abc"), st.integers(0, 2)), rewards, max_size=9
)


@given(texts=texts, n=st.integers(1, 3))
def test_distinct_is_distinct_n_grams_over_all_of_them(texts: list[list[int]], n: int) -> None:
    grams: list[list[int]] = []
    for text in texts:
        for start in range(len(text)):
            if start + n <= len(text):
                grams.append(text[start : start + n])
    different = [gram for i, gram in enumerate(grams) if gram not in grams[:i]]
    assert measures.distinct(texts, n) == (len(different) / len(grams) if grams else 0)


@given(texts=texts)
def test_no_n_gram_spans_two_completions(texts: list[list[int]]) -> None:
    apart = [[token + 10 * i for token in text] for i, text in enumerate(texts)]
    joined = [token for text in apart for token in text]
    assert measures.distinct(apart, 2) <= 1
    if sum(bool(text) for text in texts) > 1 and all(len(text) <= 1 for text in texts):
        assert measures.distinct(apart, 2) == 0
        assert measures.distinct([joined], 2) == 1


@given(rewards_of=completions)
def test_every_completion_has_a_reward_a_repetition_and_a_length(rewards_of: dict[Any, float]) -> None:
    rows = evaluated(rewards_of)
    assert len(rows) == 3 * len(rewards_of)
    assert [row["value"] for row in rows if row["measure"] == "reward"] == list(rewards_of.values())
    assert {row["value"] for row in rows if row["measure"] == "length"} <= {3.0}


@given(own=completions, other=completions)
def test_wins_of_both_sides_add_up_to_one_for_every_completion_that_both_have(own: Any, other: Any) -> None:
    wins = measures.win_rows("win", evaluated(own), evaluated(other))
    losses = measures.win_rows("win", evaluated(other), evaluated(own))
    assert len(wins) == len(losses) == len(own.keys() & other.keys())
    assert sum(row["value"] for row in wins) + sum(row["value"] for row in losses) == len(wins)


@given(own=completions, gain=rewards.filter(bool))
def test_who_is_always_better_wins_always_and_against_oneself_all_is_even(own: Any, gain: float) -> None:
    worse = {key: value + gain for key, value in own.items()}
    assert {row["value"] for row in measures.win_rows("win", evaluated(own), evaluated(worse))} <= {1.0}
    assert {row["value"] for row in measures.win_rows("win", evaluated(own), evaluated(own))} <= {0.5}


def test_completions_are_compared_prompt_by_prompt_mode_by_mode_sample_by_sample() -> None:
    own = evaluated({(GREEDY, "a", 0): 0.0, (SAMPLED, "a", 0): -1.0, (SAMPLED, "b", 0): -0.5, (SAMPLED, "c", 0): 0.0})
    other = evaluated({(SAMPLED, "b", 0): -0.5, (SAMPLED, "a", 0): -0.5, (GREEDY, "a", 0): -0.5, (GREEDY, "c", 0): 0.0})
    assert [row["value"] for row in measures.win_rows("win", own, other)] == [1.0, 0.0, 0.5]


def test_every_row_fits_the_table_of_evaluations() -> None:
    own = evaluated({(GREEDY, "a", 0): 0.0})
    rows = [
        *own,
        *measures.win_rows("win_vs_start", own, own),
        *measures.corpus_rows([builders.candidate_row()]),
        *measures.text_rows(["id"], [(-3.0, 2)]),
    ]
    assert schemas.build("evaluations", [{**row, "policy": "digest"} for row in rows]).num_rows == len(rows)


@given(found=st.lists(st.tuples(st.floats(-200, -0.001), st.integers(1, 50)), min_size=1, max_size=5))
def test_perplexity_is_that_of_all_texts_as_one(found: list[tuple[float, int]]) -> None:
    summary = measures.summarise(measures.text_rows([str(i) for i in range(len(found))], found))
    by_hand = 1.0
    for logprob, _ in found:
        by_hand *= math.exp(-logprob / sum(count for _, count in found))
    assert summary["perplexity"] == pytest.approx(by_hand)


def test_a_uniform_model_has_the_vocabulary_as_its_perplexity() -> None:
    rows = measures.text_rows(["a", "b"], [(-5 * math.log(320), 5), (-2 * math.log(320), 2)])
    assert measures.summarise(rows)["perplexity"] == pytest.approx(320)


def test_a_hopeless_model_has_a_perplexity_and_not_an_overflow() -> None:
    for logprob in (-1e6, -math.inf):
        assert measures.summarise(measures.text_rows(["a"], [(logprob, 1)]))["perplexity"] == math.inf


@given(rewards_of=completions.filter(bool))
def test_a_summary_weighs_greedy_and_sampled_alike(rewards_of: dict[Any, float]) -> None:
    summary = measures.summarise(evaluated(rewards_of))
    means = []
    for mode in (GREEDY, SAMPLED):
        found = [value for (own, _, _), value in rewards_of.items() if own == mode]
        assert (f"reward/{mode}" in summary) == bool(found)
        if found:
            means.append(sum(found) / len(found))
            assert summary[f"reward/{mode}"] == pytest.approx(means[-1])
    assert summary["reward"] == pytest.approx(sum(means) / len(means))


def test_gains_are_paired_by_completion_and_averaged_by_prompt_with_both_modes_alike() -> None:
    def row(prompt: str, sample: int, value: float, mode: str = "sampled", measure: str = "reward") -> dict[str, Any]:
        return {"measure": measure, "mode": mode, "prompt_id": prompt, "sample": sample, "value": value}

    new = [row("a", 0, 1.0), row("a", 1, 2.0), row("b", 0, 5.0), row("c", 0, 9.0), row("a", 0, 7.0, measure="length")]
    old = [row("a", 0, 0.5), row("a", 1, 0.5), row("b", 0, 6.0), row("b", 1, 0.0)]
    assert measures.gains(new, old) == [1.0, -1.0]
    new, old = [*new, row("b", 0, 5.0, "greedy")], [*old, row("b", 0, 2.0, "greedy")]
    assert measures.gains(new, old) == [1.0, (-1.0 + 3.0) / 2]


@given(values=st.lists(st.tuples(*[st.floats(-1, 0)] * 6), min_size=1, max_size=8))
def test_the_mean_of_the_gains_is_the_difference_of_the_summaries(values: list[tuple[float, ...]]) -> None:
    def rows(own: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
        return [
            {"measure": "reward", "mode": mode, "prompt_id": str(i), "sample": sample, "value": value}
            for i, three in enumerate(own)
            for (mode, sample), value in zip([("greedy", 0), ("sampled", 0), ("sampled", 1)], three, strict=True)
        ]

    new, old = rows([six[:3] for six in values]), rows([six[3:] for six in values])
    difference = measures.summarise(new)["reward"] - measures.summarise(old)["reward"]
    assert fmean(measures.gains(new, old)) == pytest.approx(difference, abs=1e-12)
