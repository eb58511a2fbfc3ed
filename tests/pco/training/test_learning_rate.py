"""What the learning rate does over a training."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pco.config.train import Train
from pco.training.loop import rate

schedules = st.sampled_from(["constant", "linear", "cosine"])


@given(total=st.integers(1, 300), share=st.floats(0, 1), schedule=schedules)
def test_it_rises_then_never_rises_again_and_is_nowhere_0(total: int, share: float, schedule: str) -> None:
    train = Train(warmup_share=share, schedule=schedule)
    rates = [rate(step, total, train) for step in range(total)]
    warmup = round(share * total)
    assert all(0 < one <= 1 for one in rates)
    assert all(one < other for one, other in zip(rates[:warmup], rates[1:warmup], strict=False))
    assert all(one >= other for one, other in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
    assert warmup == total or rates[warmup] == pytest.approx(1)
