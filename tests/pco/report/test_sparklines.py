"""Curves as characters."""

import math

from hypothesis import given
from hypothesis import strategies as st

from pco.report.sparklines import sparkline

NUMBERS = st.integers(-(10**12), 10**12).map(lambda number: number / 1000)


@given(st.lists(st.none() | st.floats(), max_size=100), st.integers(1, 50))
def test_a_curve_is_as_long_as_its_values_or_the_width_and_has_gaps_where_nothing_is_known(
    values: list[float | None], width: int
) -> None:
    known = [value is not None and math.isfinite(value) and abs(value) < 1e300 for value in values]
    drawn = sparkline([value if is_known else None for value, is_known in zip(values, known, strict=True)], width=width)
    assert len(drawn) == min(len(values), width)
    if len(values) <= width:
        assert [mark != " " for mark in drawn] == known


@given(st.lists(NUMBERS, min_size=2, max_size=40))
def test_a_higher_value_is_never_drawn_lower_and_the_ends_are_the_lowest_and_highest(
    values: list[float],
) -> None:
    drawn = sparkline(values)
    by_value = [mark for _, mark in sorted(zip(values, drawn, strict=True))]
    assert by_value == sorted(by_value)
    assert by_value[0] == "▁"
    assert by_value[-1] == ("█" if max(values) > min(values) else "▁")


def test_long_curves_are_means() -> None:
    assert sparkline([0, 0, 1, 1, 2, 2], width=3) == "▁▅█"
    assert sparkline([]) == ""
