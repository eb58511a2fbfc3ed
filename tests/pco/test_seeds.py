"""Seeds follow from what they are for."""

from hypothesis import given
from hypothesis import strategies as st

from pco.seeds import seed_of

parts = st.tuples(
    st.integers(0, 99), st.integers(0, 9), st.text("abcdef0123456789", min_size=16, max_size=16), st.integers(0, 9)
)


@given(a=parts, b=parts)
def test_seeds_are_equal_exactly_for_equal_purposes(a: tuple[object, ...], b: tuple[object, ...]) -> None:
    assert (seed_of(*a) == seed_of(*b)) == (a == b)


@given(purpose=parts)
def test_a_seed_fits_every_generator(purpose: tuple[object, ...]) -> None:
    assert 0 <= seed_of(*purpose) < 2**31


def test_a_seed_is_the_same_in_every_process() -> None:
    # Changing this changes every result that any run ever gave.
    assert seed_of(0, 1, "prompt", 2) == 0


def test_ten_thousand_samples_get_ten_thousand_seeds() -> None:
    found = {
        seed_of(0, round_number, f"prompt {i}", sample)
        for round_number in (1, 2)
        for i in range(500)
        for sample in range(10)
    }
    assert len(found) == 10_000
