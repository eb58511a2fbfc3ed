"""Intervals hold their level, against simulation and against scipy."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from data.errors import BadInput
from pco.evaluation.intervals import (
    adjusted,
    detectable_difference,
    paired_interval,
    prediction_powered_interval,
    prompts_to_decide,
    sign_test,
)

SIMULATED = 2000
finite = st.floats(-1e6, 1e6)

Draw = Callable[[np.random.Generator, int], np.ndarray]
DISTRIBUTIONS: dict[str, tuple[Draw, float]] = {
    "rewards": (lambda draw, n: draw.normal(0.1, 1.0, n), 0.1),
    "wins, ties and losses": (lambda draw, n: draw.choice([0.5, 0.0, -0.5], n, p=[0.5, 0.2, 0.3]), 0.1),
    "skewed": (lambda draw, n: draw.exponential(1.0, n), 1.0),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_of_many_simulated_evaluations_as_many_intervals_cover_the_truth_as_their_level_says(name: str) -> None:
    simulate, truth = DISTRIBUTIONS[name]
    draw = np.random.default_rng(0)
    hits = 0
    for i in range(SIMULATED):
        _, low, high = paired_interval(simulate(draw, 100), seed=i)
        hits += low <= truth <= high
    assert 0.935 <= hits / SIMULATED <= 0.965


@given(values=st.lists(st.floats(-100, 100), min_size=8, max_size=30, unique=True), level=st.floats(0.5, 0.99))
def test_the_interval_is_scipys_t_interval_where_differences_vary(values: list[float], level: float) -> None:
    mean, low, high = paired_interval(values, level=level)
    known = stats.ttest_1samp(values, 0).confidence_interval(level)
    assert mean == pytest.approx(np.mean(values))
    assert (low, high) == pytest.approx((known.low, known.high), abs=1e-9)


@given(values=st.lists(finite, min_size=2, max_size=30), seed=st.integers(0, 9))
def test_the_mean_lies_in_its_interval_and_no_seed_changes_it(values: list[float], seed: int) -> None:
    mean, low, high = paired_interval(values, seed=seed)
    assert low - 1e-6 <= mean <= high + 1e-6
    assert paired_interval(values) == (mean, low, high)


@given(values=st.lists(st.integers(-9, 9), min_size=3, max_size=30), shift=st.integers(-5, 5))
def test_a_shift_shifts_the_interval_and_a_change_of_sides_mirrors_it(values: list[int], shift: int) -> None:
    mean, low, high = paired_interval(values)
    assert paired_interval([value + shift for value in values]) == pytest.approx(
        (mean + shift, low + shift, high + shift), abs=1e-9
    )
    assert paired_interval([-value for value in values]) == pytest.approx((-mean, -high, -low), abs=1e-9)


def test_a_higher_level_is_a_wider_interval_and_more_prompts_a_narrower_one() -> None:
    values = np.random.default_rng(2).normal(size=100)

    def width(some: np.ndarray, level: float) -> float:
        _, low, high = paired_interval(some.tolist(), level=level)
        return high - low

    assert width(values, 0.99) > width(values, 0.95) > width(values, 0.5)
    assert width(np.tile(values, 4), 0.95) < 0.6 * width(values, 0.95)


def test_equal_differences_leave_no_doubt_and_a_single_one_leaves_all() -> None:
    assert paired_interval([0.25] * 9) == (0.25, 0.25, 0.25)
    assert paired_interval([0.1] * 10) == (pytest.approx(0.1),) * 3
    assert paired_interval([0.25]) == (0.25, -math.inf, math.inf)


@pytest.mark.parametrize("common", [0.0, 0.5, -3.0])
@pytest.mark.parametrize("changes", [[1.0], [1.0, 1.0], [0.5, 1.5], [-1.0, -1.0]])
def test_where_fewer_than_three_values_differ_from_the_rest_the_interval_covers_the_rest(
    common: float, changes: list[float]
) -> None:
    values = [common] * 60 + [common + change for change in changes]
    _, low, high = paired_interval(values, level=0.5)
    assert low <= common <= high
    three = [common] * 60 + [common + 1.0] * 3
    assert paired_interval(three, level=0.5)[1] > common


def test_values_that_are_equal_but_for_rounding_are_equal() -> None:
    mostly = [0.2, 0.1 + 0.1, 0.3 - 0.1, 0.2 + 3e-17] * 6 + [0.0]
    _, low, high = paired_interval(mostly, level=0.5)
    assert 0.1 < low < high and high == pytest.approx(0.2)


@pytest.mark.parametrize("bad", [[], [math.nan], [1.0, math.inf], [[1.0], [2.0]]])
def test_what_is_no_list_of_numbers_is_refused(bad: list[float]) -> None:
    with pytest.raises(BadInput, match="expected finite differences"):
        paired_interval(bad)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_a_level_that_is_no_share_is_refused(level: float) -> None:
    with pytest.raises(BadInput, match="level is"):
        paired_interval([1.0, 2.0], level=level)


@given(values=st.lists(st.sampled_from([-1.0, 0.0, 2.0]), max_size=40))
def test_the_sign_test_is_scipys_binomial_test(values: list[float]) -> None:
    above, below = sum(value > 0 for value in values), sum(value < 0 for value in values)
    expected = stats.binomtest(above, above + below).pvalue if above + below else 1.0
    assert sign_test(values) == pytest.approx(expected)


def test_a_difference_as_large_as_the_detectable_one_is_found_as_often_as_the_power_says() -> None:
    draw, count = np.random.default_rng(3), 64
    difference = detectable_difference(1.0, count, power=0.8)
    found = 0
    for i in range(SIMULATED // 2):
        _, low, _ = paired_interval(draw.normal(difference, 1.0, count), seed=i)
        found += low > 0
    assert 0.77 <= found / (SIMULATED // 2) <= 0.83


@given(values=st.lists(st.floats(0, 1), max_size=8))
def test_holms_correction_keeps_the_order_and_never_lowers_a_value(values: list[float]) -> None:
    after = adjusted(values)
    assert all(0 <= p <= q <= 1 for p, q in zip(values, after, strict=True))
    ranked = [q for _, q in sorted(zip(values, after, strict=True))]
    assert ranked == sorted(ranked)
    assert adjusted([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


@settings(max_examples=30)
@given(
    judged=st.lists(st.integers(-5, 5).map(float), min_size=4, max_size=20),
    rest=st.lists(st.integers(-5, 5).map(float), min_size=2, max_size=20),
    scale=st.sampled_from([-3.0, 0.5, 100.0]),
    shift=st.integers(-9, 9).map(float),
    seed=st.integers(0, 9),
)
def test_the_unit_and_bias_of_a_cheap_measure_change_nothing(
    judged: list[float], rest: list[float], scale: float, shift: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    cheap = [value + int(generator.integers(-2, 3)) for value in judged]
    interval = prediction_powered_interval(judged, cheap, rest)
    other = prediction_powered_interval(
        judged, [scale * value + shift for value in cheap], [scale * value + shift for value in rest]
    )
    assert other == pytest.approx(interval, rel=1e-6, abs=1e-6)
    assert interval[1] <= interval[0] <= interval[2]
    mean, low, high = interval
    turned = prediction_powered_interval([-value for value in judged], cheap, rest)
    assert turned == pytest.approx((-mean, -high, -low), rel=1e-6, abs=1e-6)


def test_a_perfect_cheap_measure_is_as_good_as_judging_all_and_a_useless_one_as_the_judged_alone() -> None:
    generator = np.random.default_rng(0)
    everyone = generator.normal(0.3, 1, 400).tolist()
    perfect = prediction_powered_interval(everyone[:50], everyone[:50], everyone[50:])
    assert perfect == pytest.approx(paired_interval(everyone), abs=2e-3)
    noise = generator.normal(size=400).tolist()
    _, low, high = prediction_powered_interval(everyone[:50], noise[:50], noise[50:])
    alone = paired_interval(everyone[:50])
    assert high - low == pytest.approx(alone[2] - alone[1], rel=0.15)


@pytest.mark.parametrize(
    ("judged", "cheap", "rest"),
    [
        ([1.0, 2.0, 4.0], [1.0, 2.0, 3.0], [5.0, 6.0]),  # too few to fit a slope
        ([1.0, 2.0, 4.0, 3.0], [7.0] * 4, [7.0, 8.0]),  # nothing to go by
        ([1.0, 2.0, 4.0, 3.0], [1.0, 2.0, 3.0, 4.0], []),  # all are judged
    ],
)
def test_without_a_cheap_measure_to_go_by_it_is_the_interval_of_the_judged(
    judged: list[float], cheap: list[float], rest: list[float]
) -> None:
    assert prediction_powered_interval(judged, cheap, rest) == paired_interval(judged)


def test_one_judged_prompt_of_many_that_changed_proves_nothing_beside_a_cheap_measure() -> None:
    judged = [1.0] + [0.0] * 29
    cheap = [5.0] + [0.0] * 29
    _, low, _ = prediction_powered_interval(judged, cheap, [4.0] * 300)
    assert low <= 0


def test_a_cheap_measure_of_other_prompts_is_refused() -> None:
    with pytest.raises(BadInput, match="for each of 4 judged"):
        prediction_powered_interval([1.0, 2.0, 3.0, 4.0], [1.0], [2.0, 3.0])
    with pytest.raises(BadInput):
        prediction_powered_interval([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, float("nan")], [2.0, 3.0])


@settings(max_examples=50)
@given(st.lists(st.integers(-9, 10).map(float), min_size=2, max_size=30), st.sampled_from([0.8, 0.9, 0.95]))
def test_so_many_prompts_decide_and_no_fewer(excess: list[float], level: float) -> None:
    needed = prompts_to_decide(excess, level=level)
    mean, spread = float(np.mean(excess)), float(np.std(excess, ddof=1))
    if needed is None:
        assert mean <= 0
        return

    def low(count: int) -> float:
        return mean - float(stats.t.ppf((1 + level) / 2, count - 1)) * spread / math.sqrt(count)

    assert low(needed) > 0
    assert needed == 2 or low(needed - 1) <= 0
