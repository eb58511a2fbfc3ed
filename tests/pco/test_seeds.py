"""Seeds follow from what they are for."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from pco.seeds import seed_of

prompt_ids = st.text("abcdef0123456789", min_size=16, max_size=16)
parts = st.tuples(st.integers(0, 99), st.integers(0, 9), prompt_ids, st.integers(0, 9))


@given(a=parts, b=parts)
def test_seeds_are_equal_exactly_for_equal_purposes(a: tuple[object, ...], b: tuple[object, ...]) -> None:
    assert (seed_of(*a) == seed_of(*b)) == (a == b)


@given(purpose=parts)
def test_a_seed_fits_every_generator(purpose: tuple[object, ...]) -> None:
    assert 0 <= seed_of(*purpose) < 2**31


def test_a_seed_is_the_same_in_every_process() -> None:
    # Changing this changes every result that any run ever gave.
    assert seed_of(0, 1, "prompt", 2) == 1045861411


def test_ten_thousand_samples_get_ten_thousand_seeds() -> None:
    purposes = itertools.product([0], [1, 2], [f"prompt {i}" for i in range(500)], range(10))
    assert len({seed_of(*purpose) for purpose in purposes}) == 10_000
