"""The interval of a win rate at equal length."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import BadInput
from pco.evaluation import length_control
from pco.evaluation.length_control import Games, controlled_interval, controlled_rate

completions = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from([0.0, 0.5, 1.0]), st.integers(-30, 30)), min_size=1, max_size=30
)


def games(rows: list[tuple[int, float, int]]) -> Games:
    return Games([str(row[0]) for row in rows], [row[1] for row in rows], [float(row[2]) for row in rows])


@given(rows=completions, times=st.lists(st.integers(0, 3), min_size=30, max_size=30))
def test_a_resample_is_the_rate_of_the_completions_that_were_drawn(
    rows: list[tuple[int, float, int]], times: list[int]
) -> None:
    counts = np.array(times[: len(rows)])
    (rate,) = length_control.resampled_rates(games(rows), counts[None])
    drawn = [row for row, count in zip(rows, counts, strict=True) for _ in range(count)]
    if not drawn:
        assert np.isnan(rate)
        return
    of_drawn = games(drawn)
    assert rate == pytest.approx(controlled_rate(of_drawn.wins, of_drawn.longer), abs=0.01)


@settings(max_examples=30)  # each resamples thousands of times
@given(rows=completions)
def test_the_interval_is_one_of_shares_is_seeded_and_widens_with_the_level(rows: list[tuple[int, float, int]]) -> None:
    rate, low, high = controlled_interval([games(rows)])
    assert 0 <= low <= high <= 1
    assert rate == pytest.approx(controlled_rate(games(rows).wins, games(rows).longer))
    assert controlled_interval([games(rows)]) == (rate, low, high)
    _, lower, higher = controlled_interval([games(rows)], level=0.99)
    assert lower <= low and high <= higher


def test_a_single_prompt_says_nothing_of_the_spread() -> None:
    assert controlled_interval([games([(1, 1.0, 3), (1, 1.0, 4)])])[1:] == (0.0, 1.0)


def test_completions_of_one_prompt_count_as_one() -> None:
    """Ten copies of each prompt's completion are no more evidence than one."""
    draw = np.random.default_rng(0)
    rows = [(i, float(draw.integers(0, 2)), int(draw.integers(-20, 20))) for i in range(60)]
    once, often = (controlled_interval([games(rows * copies)]) for copies in (1, 10))
    assert often[2] - often[1] == pytest.approx(once[2] - once[1], rel=0.15)


def test_it_covers_the_true_rate_about_as_often_as_it_says() -> None:
    draw = np.random.default_rng(1)
    covered = 0
    for _ in range(60):
        longer = draw.normal(5, 10, 100)
        won = draw.random(100) < 1 / (1 + np.exp(-0.4 - np.tanh(longer / 10)))
        _, low, high = controlled_interval(
            [Games(list(map(str, range(100))), won.astype(float).tolist(), longer.tolist())]
        )
        covered += low <= 1 / (1 + np.exp(-0.4)) <= high
    assert covered >= 52  # nominal 57; 52 has a chance of 1 in 80 at 95 %


@pytest.mark.parametrize(("modes", "level"), [([], 0.95), ([Games([], [], [])], 0.95), ([games([(1, 1.0, 1)])], 1.0)])
def test_nothing_to_compare_or_no_level_is_refused(modes: list[Games], level: float) -> None:
    with pytest.raises(BadInput, match="controlled_interval"):
        controlled_interval(modes, level=level)
