"""How far completions are that are sampled together: by the tokens that the engine says it has sampled."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pco.models import engine
from pco.models.engine import Meter


class Engine:
    """Samples all requests side by side, a token of each at a step, and says how many tokens that were so far."""

    def __init__(self, lengths: Sequence[int], earlier: int = 0) -> None:
        self.lengths, self.tokens = lengths, float(earlier)

    def run(self, meter: Meter) -> None:
        for step in range(1, max(self.lengths) + 1):
            self.tokens += sum(length >= step for length in self.lengths)
            meter.finish(sum(length == step for length in self.lengths))


def told(lengths: Sequence[int], expected: float, earlier: int = 0) -> list[float]:
    sampling, steps = Engine(lengths, earlier), list[float]()
    with Meter(len(lengths), expected, lambda: sampling.tokens, steps.append) as meter:
        sampling.run(meter)
    return steps


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.floats(1, 100), st.integers(0, 1000))
def test_it_only_grows_and_comes_to_all_of_them_at_the_end(lengths: list[int], expected: float, earlier: int) -> None:
    steps = told(lengths, expected, earlier)
    assert all(step > 0 for step in steps)
    assert sum(steps) == pytest.approx(len(lengths))


def test_requests_that_end_together_are_half_done_after_half_of_their_tokens() -> None:
    steps = told([100] * 8, expected=100)
    assert sum(steps[:50]) == pytest.approx(4)
    assert len(steps) == 100


@given(st.lists(st.integers(2, 40), min_size=2, max_size=20))
def test_never_all_before_the_last_is_finished_however_short_they_were_expected_to_be(lengths: list[int]) -> None:
    *before, _ = told(lengths, expected=1)
    assert sum(before) < len(lengths)


def test_it_is_told_between_finished_requests_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_METER_EVERY_S", 0.001)
    sampling, steps = Engine([10]), list[float]()
    with Meter(1, 10, lambda: sampling.tokens, steps.append):
        sampling.tokens = 5
        while not steps:
            pass
    assert steps == [0.5]


def test_an_engine_that_fails_ends_the_watch() -> None:
    with pytest.raises(MemoryError), Meter(1, 10, lambda: 0.0, lambda _: None) as meter:
        raise MemoryError
    assert not meter._watch.is_alive()
