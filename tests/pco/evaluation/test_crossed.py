"""Intervals over prompts and seeds: what they must be whatever the numbers are, and how often they are wrong."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import BadInput
from pco.evaluation.crossed import crossed_interval
from pco.evaluation.intervals import paired_interval

Numbers = st.floats(-10, 10).map(lambda value: round(value, 3))


def by_prompt(values: np.ndarray) -> list[dict[str, float]]:
    return [{f"p{i}": float(value) for i, value in enumerate(row)} for row in values]


@settings(max_examples=50)
@given(st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(Numbers, min_size=n, max_size=n), min_size=1, max_size=4)))
def test_the_interval_holds_the_mean_and_is_no_narrower_than_over_prompts(values: list[list[float]]) -> None:
    mean, low, high = crossed_interval(by_prompt(np.array(values)))
    assert low <= mean <= high
    assert mean == pytest.approx(np.mean(values), abs=1e-9)
    if len(values[0]) > 1:
        _, inner_low, inner_high = paired_interval(list(np.mean(values, axis=0)))
        assert low <= inner_low and inner_high <= high
    ups = crossed_interval(by_prompt(-np.array(values)))
    assert ups == pytest.approx((-mean, -high, -low), abs=1e-9)


def test_one_seed_is_the_interval_over_prompts_and_seeds_that_agree_add_nothing() -> None:
    row = [0.1, 0.4, -0.2, 0.3, 0.5]
    alone = crossed_interval(by_prompt(np.array([row])))
    assert alone == paired_interval(row)
    assert crossed_interval(by_prompt(np.array([row] * 3))) == pytest.approx(alone)


def test_seeds_that_disagree_widen_it() -> None:
    rows = np.array([[0.1, 0.2, 0.15, 0.12]] * 3) + np.array([[0.0], [0.5], [-0.5]])
    _, low, high = crossed_interval(by_prompt(rows))
    _, inner_low, inner_high = paired_interval(list(rows.mean(axis=0)))
    assert high - low > 10 * (inner_high - inner_low)


def test_prompts_that_a_seed_lacks_are_left_out_and_seeds_without_common_prompts_count_by_their_means() -> None:
    assert crossed_interval([{"a": 1.0, "b": 2.0, "c": 9.0}, {"a": 1.0, "b": 2.0}])[0] == 1.5
    assert crossed_interval([{"a": 1.0, "b": 3.0}, {"c": 4.0}]) == paired_interval([2.0, 4.0])


@pytest.mark.parametrize("wrong", [[], [{}], [{"a": 1.0}, {}], [{"a": math.nan, "b": 1.0}, {"a": 1.0, "b": 1.0}]])
def test_what_is_no_difference_is_refused(wrong: list[dict[str, float]]) -> None:
    with pytest.raises(BadInput):
        crossed_interval(wrong)


@pytest.mark.parametrize(("effect", "seeds"), [(0.0, 3), (0.3, 3), (1.0, 3), (1.0, 5)])
def test_equal_methods_are_called_different_about_as_often_as_the_level_allows(effect: float, seeds: int) -> None:
    """As measured in `benchmarks/study_level.py`; over prompts alone it is above half with an effect of 1."""
    draw, studies, prompts = np.random.default_rng(seeds), 250, 40
    wrong = 0
    for _ in range(studies):
        values = draw.normal(size=prompts)[None] + effect * draw.normal(size=(seeds, 1))
        _, low, high = crossed_interval(by_prompt(values + draw.normal(size=(seeds, prompts))))
        wrong += low > 0 or high < 0
    assert wrong / studies < 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / studies)
