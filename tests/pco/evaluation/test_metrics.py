"""What an evaluation measures, against counting by hand."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from data import schemas
from pco.evaluation import metrics
from pco.evaluation.differences import per_prompt_differences, per_text_drifts
from pco.evaluation.length_control import controlled_rate
from pco.models.sampling import GREEDY, SAMPLED
from tests import builders

texts = st.lists(st.lists(st.integers(0, 3), max_size=8), max_size=5)
rewards = st.integers(-4, 0).map(lambda n: n / 4)


def evaluated(rewards_of: dict[tuple[str, str, int], float]) -> list[dict[str, Any]]:
    """Rows of an evaluation in which completions, named by mode, prompt and sample, got some rewards."""
    candidates = [builders.candidate_row(prompt, sample, mode=mode) for mode, prompt, sample in rewards_of]
    return metrics.completion_rows(candidates, list(rewards_of.values()))


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
    assert metrics.distinct(texts, n) == (len(different) / len(grams) if grams else 0)


@given(texts=texts)
def test_no_n_gram_spans_two_completions(texts: list[list[int]]) -> None:
    apart = [[token + 10 * i for token in text] for i, text in enumerate(texts)]
    joined = [token for text in apart for token in text]
    assert metrics.distinct(apart, 2) <= 1
    if sum(bool(text) for text in texts) > 1 and all(len(text) <= 1 for text in texts):
        assert metrics.distinct(apart, 2) == 0
        assert metrics.distinct([joined], 2) == 1


@given(rewards_of=completions)
def test_every_completion_has_a_row_per_metric_and_only_sampled_ones_an_entropy(rewards_of: dict[Any, float]) -> None:
    rows = evaluated(rewards_of)
    for metric in ("reward", "repetition", "repetition_4", "length"):
        assert sum(row["measure"] == metric for row in rows) == len(rewards_of)
    assert {row["mode"] for row in rows if row["measure"] == "entropy"} <= {SAMPLED}
    assert [row["value"] for row in rows if row["measure"] == "reward"] == list(rewards_of.values())
    assert {row["value"] for row in rows if row["measure"] == "length"} <= {3.0}


@given(own=completions, other=completions)
def test_wins_of_both_sides_add_up_to_one_for_every_completion_that_both_have(own: Any, other: Any) -> None:
    wins = metrics.win_rows("win", evaluated(own), evaluated(other))
    losses = metrics.win_rows("win", evaluated(other), evaluated(own))
    assert len(wins) == len(losses) == len(own.keys() & other.keys())
    assert sum(row["value"] for row in wins) + sum(row["value"] for row in losses) == len(wins)


@given(own=completions, gain=rewards.filter(bool))
def test_who_is_always_better_wins_always_and_against_oneself_all_is_even(own: Any, gain: float) -> None:
    worse = {key: value + gain for key, value in own.items()}
    assert {row["value"] for row in metrics.win_rows("win", evaluated(own), evaluated(worse))} <= {1.0}
    assert {row["value"] for row in metrics.win_rows("win", evaluated(own), evaluated(own))} <= {0.5}


def test_completions_are_compared_prompt_by_prompt_mode_by_mode_sample_by_sample() -> None:
    own = evaluated({(GREEDY, "a", 0): 0.0, (SAMPLED, "a", 0): -1.0, (SAMPLED, "b", 0): -0.5, (SAMPLED, "c", 0): 0.0})
    other = evaluated({(SAMPLED, "b", 0): -0.5, (SAMPLED, "a", 0): -0.5, (GREEDY, "a", 0): -0.5, (GREEDY, "c", 0): 0.0})
    assert [row["value"] for row in metrics.win_rows("win", own, other)] == [1.0, 0.0, 0.5]


def test_every_row_fits_the_table_of_evaluations() -> None:
    own = evaluated({(GREEDY, "a", 0): 0.0})
    texts = metrics.text_rows(["id"], [(-3.0, 2)])
    rows = [
        *own,
        *metrics.rows_against("start", own, own),
        *metrics.corpus_rows([builders.candidate_row()]),
        *texts,
        *metrics.drift_rows(texts, texts),
        metrics.kl_row(builders.candidate_row(), -2.0),
    ]
    assert schemas.build("evaluations", [{**row, "policy": "digest"} for row in rows]).num_rows == len(rows)


@given(found=st.lists(st.tuples(st.floats(-200, -0.001), st.integers(1, 50)), min_size=1, max_size=5))
def test_perplexity_is_that_of_all_texts_as_one(found: list[tuple[float, int]]) -> None:
    summary = metrics.summarise(metrics.text_rows([str(i) for i in range(len(found))], found))
    by_hand = 1.0
    for logprob, _ in found:
        by_hand *= math.exp(-logprob / sum(count for _, count in found))
    assert summary["perplexity"] == pytest.approx(by_hand)


def test_a_uniform_model_has_the_vocabulary_as_its_perplexity() -> None:
    rows = metrics.text_rows(["a", "b"], [(-5 * math.log(320), 5), (-2 * math.log(320), 2)])
    assert metrics.summarise(rows)["perplexity"] == pytest.approx(320)


def test_a_hopeless_model_has_a_perplexity_and_not_an_overflow() -> None:
    for logprob in (-1e6, -math.inf):
        assert metrics.summarise(metrics.text_rows(["a"], [(logprob, 1)]))["perplexity"] == math.inf


@given(rewards_of=completions.filter(bool))
def test_a_summary_weighs_greedy_and_sampled_alike(rewards_of: dict[Any, float]) -> None:
    summary = metrics.summarise(evaluated(rewards_of))
    means = []
    for mode in (GREEDY, SAMPLED):
        found = [value for (own, _, _), value in rewards_of.items() if own == mode]
        assert (f"reward/{mode}" in summary) == bool(found)
        if found:
            means.append(sum(found) / len(found))
            assert summary[f"reward/{mode}"] == pytest.approx(means[-1])
    assert summary["reward"] == pytest.approx(sum(means) / len(means))


def test_differences_are_paired_by_completion_and_averaged_by_prompt_with_both_modes_alike() -> None:
    def row(prompt: str, sample: int, value: float, mode: str = "sampled", metric: str = "reward") -> dict[str, Any]:
        return {"measure": metric, "mode": mode, "prompt_id": prompt, "sample": sample, "value": value}

    new = [row("a", 0, 1.0), row("a", 1, 2.0), row("b", 0, 5.0), row("c", 0, 9.0), row("a", 0, 7.0, metric="length")]
    old = [row("a", 0, 0.5), row("a", 1, 0.5), row("b", 0, 6.0), row("b", 1, 0.0)]
    assert per_prompt_differences(new, old) == [1.0, -1.0]
    new, old = [*new, row("b", 0, 5.0, "greedy")], [*old, row("b", 0, 2.0, "greedy")]
    assert per_prompt_differences(new, old) == [1.0, (-1.0 + 3.0) / 2]


@given(values=st.lists(st.tuples(*[st.floats(-1, 0)] * 6), min_size=1, max_size=8))
def test_the_mean_of_the_differences_per_prompt_is_the_difference_of_the_summaries(
    values: list[tuple[float, ...]],
) -> None:
    def rows(own: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
        return [
            {"measure": "reward", "mode": mode, "prompt_id": str(i), "sample": sample, "value": value}
            for i, three in enumerate(own)
            for (mode, sample), value in zip([("greedy", 0), ("sampled", 0), ("sampled", 1)], three, strict=True)
        ]

    new, old = rows([six[:3] for six in values]), rows([six[3:] for six in values])
    difference = metrics.summarise(new)["reward"] - metrics.summarise(old)["reward"]
    assert fmean(per_prompt_differences(new, old)) == pytest.approx(difference, abs=1e-12)


def test_a_metric_that_a_completion_does_not_have_is_no_row_of_it() -> None:
    empty, other = builders.candidate_row(tokens=()), builders.candidate_row("other", tokens=[5])
    rows = metrics.completion_rows(
        [empty, other], [math.nan, 1.0], second_rewards=[2.0, math.inf], references={other["prompt_id"]: "5"}
    )
    named = {(row["measure"], row["prompt_id"]) for row in rows}
    assert {("second_reward", empty["prompt_id"]), ("reward", other["prompt_id"])} <= named
    assert not {("reward", empty["prompt_id"]), ("second_reward", other["prompt_id"])} & named
    assert [prompt for metric, prompt in named if metric == "f1"] == [other["prompt_id"]]
    assert [prompt for metric, prompt in named if metric == "entropy"] == [other["prompt_id"]]


def test_entropy_is_what_a_token_costs_and_of_a_uniform_policy_the_logarithm_of_its_vocabulary() -> None:
    row = {**builders.candidate_row(tokens=[1, 2, 3, 4]), "logprob": 4 * -math.log(320)}
    assert metrics.summarise(metrics.completion_rows([row], [0.0]))["entropy"] == pytest.approx(math.log(320))


@pytest.mark.parametrize(
    ("own", "other", "value"),
    [
        ("The cat sat.", "a CAT, sat", 1.0),
        ("cat dog", "cat", 2 / 3),
        ("cat cat cat", "cat", 0.5),
        ("dog", "cat", 0.0),
        ("", "cat", 0.0),
        ("the a an", "!?", 0.0),
        ("well-known fact", "well known", 0.8),
    ],
)
def test_f1_is_of_words_without_case_punctuation_and_articles(own: str, other: str, value: float) -> None:
    assert metrics.f1(own, other) == metrics.f1(other, own) == pytest.approx(value)


@given(own=completions, score=rewards)
def test_one_reference_answer_is_met_by_every_completion_of_its_prompt(own: Any, score: float) -> None:
    rows = evaluated(own)
    prompt = builders.candidate_row("a")["prompt_id"]
    met = metrics.reference_rows(rows, {("reward", prompt): score, ("length", prompt): 5.0})
    against = metrics.rows_against("reference", rows, met)
    wins = [row["value"] for row in against if row["measure"] == "win_vs_reference"]
    assert wins == [0.5 if value == score else float(value > score) for (_, a, _), value in own.items() if a == "a"]
    assert {row["value"] for row in against if row["measure"] == "length_vs_reference"} <= {-2.0}
    assert metrics.reference_rows(rows, {("reward", prompt): math.nan}) == []


@given(completions)
def test_the_best_of_n_is_the_highest_reward_of_a_prompts_samples(own: dict[tuple[str, str, int], float]) -> None:
    samples = {p: [value for (mode, a, _), value in own.items() if (mode, a) == (SAMPLED, p)] for p in "abc"}
    n = max(map(len, samples.values()))
    expected = {builders.prompt_id(p): max(rewards) for p, rewards in samples.items() if len(rewards) == n > 1}
    rows = evaluated(own)
    more = metrics.with_best_of_n(rows)
    assert more[: len(rows)] == rows
    assert {row["prompt_id"]: row["value"] for row in more[len(rows) :]} == expected
    summary = metrics.summarise(more)
    assert summary.get("best_of_n") == (pytest.approx(fmean(expected.values())) if expected else None)
    if expected and len(expected) == sum(map(bool, samples.values())):  # no prompt was left out
        assert summary["best_of_n"] >= summary["reward/sampled"]


def test_the_second_reward_of_the_best_sample_is_of_the_one_that_the_first_prefers() -> None:
    candidates = [builders.candidate_row(prompt, sample) for prompt in "ab" for sample in range(3)]
    rows = metrics.completion_rows(
        candidates, [1.0, 3.0, 2.0, 5.0, 5.0, 0.0], second_rewards=[9.0, 1.0, 9.0, 2.0, 4.0, math.nan]
    )
    best = metrics.with_best_of_n(rows)[len(rows) :]
    assert [row["value"] for row in best if row["measure"] == "best_of_n"] == [3.0, 5.0]
    assert [row["value"] for row in best if row["measure"] == "second_best_of_n"] == [1.0, 3.0]  # ties: their mean


def test_prompts_with_a_sample_without_a_reward_have_no_best_of_n() -> None:
    candidates = [builders.candidate_row(prompt, sample) for prompt in "ab" for sample in range(2)]
    rows = metrics.completion_rows(candidates, [1.0, 3.0, math.nan, 9.0])
    assert [row["value"] for row in metrics.with_best_of_n(rows) if row["measure"] == "best_of_n"] == [3.0]
    alone = metrics.completion_rows(candidates[:1], [1.0])
    assert metrics.with_best_of_n(alone) == alone


two_texts = st.lists(
    st.tuples(st.floats(-200, -0.1), st.floats(-200, -0.1), st.integers(1, 50)), min_size=1, max_size=6
)


@given(found=two_texts)
def test_drift_is_the_logarithm_of_the_ratio_of_perplexities(found: list[tuple[float, float, int]]) -> None:
    names = [str(i) for i in range(len(found))]
    start = metrics.text_rows(names, [(before, tokens) for before, _, tokens in found])
    rows = metrics.text_rows(names, [(now, tokens) for _, now, tokens in found])
    rows += metrics.drift_rows(rows, start)
    now, before = metrics.summarise(rows), metrics.summarise(start)
    assert len(per_text_drifts(rows)) == len(found) and "drift" not in before
    assert now["drift"] == pytest.approx(math.log(now["perplexity"] / before["perplexity"]), abs=1e-9)


def test_a_text_that_became_impossible_has_no_drift() -> None:
    start, now = (metrics.text_rows(["a"], [(logprob, 2)]) for logprob in (-1.0, -math.inf))
    assert metrics.drift_rows(now, start) == [] and "drift" not in metrics.summarise(now)


def test_a_loss_of_probability_on_the_starts_samples_counts_per_token() -> None:
    start = {**builders.candidate_row(tokens=[1, 2]), "logprob": -1.0}
    assert metrics.summarise([metrics.kl_row(start, -4.0)])["kl"] == 1.5


# The win rate at equal length.

games = st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(-40, 40)), min_size=1, max_size=30)


@given(games=games, scale=st.sampled_from([1, 7]))
def test_a_change_of_sides_mirrors_the_controlled_rate_and_the_unit_of_length_does_not_matter(
    games: list[tuple[float, int]], scale: int
) -> None:
    rate = controlled_rate([win for win, _ in games], [longer for _, longer in games])
    mirrored = controlled_rate([1 - win for win, _ in games], [-scale * longer for _, longer in games])
    assert 0 <= rate <= 1
    assert rate + mirrored == pytest.approx(1, abs=1e-6)


def test_the_controlled_rate_is_that_of_the_penalised_logistic_regression_that_scipy_finds() -> None:
    draw = np.random.default_rng(0)
    longer = draw.normal(10, 30, 300)
    wins = (draw.random(300) < 1 / (1 + np.exp(-(0.4 + 0.05 * longer)))).astype(float)
    inputs = np.tanh(longer / longer.std())

    def cost(weights: Any) -> float:
        logits = weights[0] + weights[1] * inputs
        return float(np.logaddexp(0, logits).sum() - (wins * logits).sum() + weights[1] ** 2 / 2)

    best = minimize(cost, np.zeros(2), tol=1e-12).x
    assert controlled_rate(wins, longer) == pytest.approx(1 / (1 + math.exp(-best[0])), abs=1e-5)


def test_who_wins_by_length_alone_is_even_at_equal_length_and_who_wins_regardless_stays_ahead() -> None:
    draw = np.random.default_rng(1)
    longer = draw.normal(20, 10, 500)
    by_length = (longer + draw.normal(0, 10, 500) > 0).astype(float)
    assert by_length.mean() > 0.9 and 0.3 < controlled_rate(by_length, longer) < 0.65
    regardless = (draw.random(500) < 0.8).astype(float)
    assert controlled_rate(regardless, longer) == pytest.approx(regardless.mean(), abs=0.15)


@pytest.mark.parametrize(
    ("wins", "longer"), [([1.0, 1.0], [3, -3]), ([0.0, 0.0], [3, -3]), ([1.0, 0.0, 0.5, 1.0], [2, 2, 2, 2])]
)
def test_with_nothing_to_control_the_plain_rate_stands(wins: list[float], longer: list[float]) -> None:
    assert controlled_rate(wins, longer) == fmean(wins)


def test_a_summary_has_the_controlled_rate_of_each_mode_and_their_mean() -> None:
    own = evaluated({(mode, str(i), 0): float(i % 3) for i in range(9) for mode in (GREEDY, SAMPLED)})
    other = [{**row, "value": row["value"] - (row["measure"] == "length") * int(row["sample"])} for row in own]
    summary = metrics.summarise(metrics.rows_against("start", own, other))
    assert summary["lc_win_vs_start/greedy"] == summary["lc_win_vs_start"] == 0.5
    assert "lc_win_vs_start/sampled" in summary and "lc_second_win_vs_start" not in summary
    without = metrics.summarise(metrics.win_rows("win_vs_start", own, other))  # as earlier versions wrote them
    assert "win_vs_start" in without and "lc_win_vs_start" not in without
