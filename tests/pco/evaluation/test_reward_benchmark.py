"""The numbers of a public benchmark of reward models, by hand and by laws."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import BadInput
from data.rows import RewardBenchmarkRow
from pco.evaluation.intervals import wilson_interval
from pco.evaluation.reward_benchmark import best_of, items, measured, ties_values

REWARDS = st.integers(-3, 3).map(float)


def prompt(
    item: int, right: list[float], wrong: list[float], lengths: tuple[int, int] = (5, 5), **columns: Any
) -> list[RewardBenchmarkRow]:
    """The rows of a prompt; `lengths` are those of right and wrong answers."""
    base: dict[str, Any] = {"item": item, "source_id": None, "subset": "s", "tie": None, "tie_number": None}
    base |= {"as_first": None, "as_second": None, "reward_model": "m", **columns}
    rows: list[Any] = [{**base, "correct": True, "length": lengths[0], "reward": value} for value in right]
    return rows + [{**base, "correct": False, "length": lengths[1], "reward": value} for value in wrong]


def test_accuracies_by_hand() -> None:
    rows = [
        *prompt(0, [2.0], [1.0, 0.0, -1.0], (9, 5)),
        *prompt(1, [1.0], [1.0, 0.0, 2.0], (3, 5)),
        *prompt(2, [0.0], [0.0, -1.0, -1.0], (5, 5)),
        *prompt(3, [1.0], [0.0], subset="pairs"),
    ]
    result = measured(rows)
    first, second = result.subsets
    assert first.best is not None
    assert (first.best.mean, first.answers) == (pytest.approx((1 + 0 + 0.5) / 3), 4)
    assert first.pairs.mean == pytest.approx((1 + 0.5 + 2.5 / 3) / 3)
    assert (second.best, second.pairs.mean, second.score) == (None, 1.0, 1.0)
    assert result.all.pairs.prompts == 4
    assert result.mean_of_subsets == pytest.approx((0.5 + 1) / 2)
    assert result.bias.longer is not None
    assert result.bias.shorter is not None
    assert (result.bias.longer.mean, result.bias.shorter.mean) == (1.0, 0.5)
    assert result.bias.follows_position is None


def test_ties_without_the_other_prompt_of_their_number_have_no_score() -> None:
    lone = [row | {"tie": "ref", "tie_number": 1} for row in prompt(1, [1.0], [0.0], subset="Ties")]
    result = measured([*prompt(0, [1.0], [2.0, 0.0]), *lone])
    assert [subset.score for subset in result.subsets] == [0.0, None]
    assert result.mean_of_subsets == 0.0


def test_the_share_of_verdicts_that_follow_the_position() -> None:
    rows = [
        *prompt(0, [0.5], [0.5], as_first=1.0, as_second=0.0),  # the first answer wins both times
        *prompt(1, [0.5], [1.0], as_first=1.0, as_second=1.0),
        *prompt(2, [0.5], [0.5], as_first=0.5, as_second=0.5),
    ]
    for row in rows:
        if row["correct"]:
            row["as_first"] = row["as_second"] = None
    bias = measured(rows).bias
    assert bias.follows_position is not None
    assert bias.follows_position.mean == pytest.approx(1 / 3)
    assert bias.prefers_first == 3 / 4


@given(correct=REWARDS, incorrect=st.lists(REWARDS, min_size=1, max_size=5))
def test_a_best_answer_shares_its_credit_with_those_that_are_as_good(correct: float, incorrect: list[float]) -> None:
    everyone = [correct, *incorrect]
    credits = [best_of(reward, everyone[:i] + everyone[i + 1 :]) for i, reward in enumerate(everyone)]
    assert sum(credits) == pytest.approx(1)


def ties(ref: tuple[float, list[float]], right: list[float], wrong: list[float]) -> float:
    rows = [
        *prompt(0, [ref[0]], ref[1], tie="ref", tie_number=1),
        *prompt(1, right, wrong, tie="tied", tie_number=1),
    ]
    return ties_values(items(rows))[1]


@pytest.mark.parametrize(
    ("ref", "right", "wrong", "value"),
    [
        ((5.0, [0.0]), [4.0, 3.0], [1.0, 0.0], 1 + 0.01 * math.tanh(2 / 1 - 1)),
        ((5.0, [4.5]), [4.0, 3.0], [1.0, 0.0], 0.8 + 0.01 * math.tanh(0.5 / 1 - 1)),  # hard one missed
        ((0.0, [1.0]), [4.0, 3.0], [1.0, 0.0], 0.5 + 0.01 * math.tanh(-1 / 1 - 1)),
        ((5.0, [0.0]), [4.0, 0.0], [1.0], 0.3 + 0.01 * math.tanh(-1 / 4 - 1)),
        ((5.0, [0.0]), [3.0, 3.0], [1.0], 1.01),  # no spread
        ((1.0, [1.0]), [1.0, 1.0], [1.0], 0.0),  # all alike: 0 / 0
    ],
)
def test_the_score_of_ties_is_that_of_rewardbench_2(
    ref: tuple[float, list[float]], right: list[float], wrong: list[float], value: float
) -> None:
    assert ties(ref, right, wrong) == pytest.approx(value)


@given(scale=st.sampled_from([0.5, 2.0, 8.0]), shift=REWARDS, data=st.tuples(REWARDS, REWARDS, REWARDS, REWARDS))
def test_the_score_of_ties_does_not_depend_on_the_rewards_scale(
    scale: float, shift: float, data: tuple[float, float, float, float]
) -> None:
    a, b, c, d = data
    x, y, z, w = (scale * value + shift for value in data)
    assert ties((a, [b]), [c, a], [d]) == pytest.approx(ties((x, [y]), [z, x], [w]))


def test_ties_of_which_a_prompt_is_missing_are_left_out() -> None:
    assert ties_values(items(prompt(0, [1.0], [0.0], tie="ref", tie_number=1))) == {}


@given(successes=st.integers(0, 40), more=st.integers(0, 40))
def test_wilsons_interval_holds_the_share_and_is_that_of_the_failures_turned_around(successes: int, more: int) -> None:
    count = max(1, successes + more)
    share = successes / count
    low, high = wilson_interval(share, count)
    assert 0 <= low <= share <= high <= 1
    turned = wilson_interval(1 - share, count)
    assert turned == pytest.approx((1 - high, 1 - low))
    assert low < high


def test_wilsons_interval_by_hand_and_for_what_is_no_share() -> None:
    assert wilson_interval(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson_interval(1.0, 10)[0] == pytest.approx(0.7225, abs=1e-4)
    with pytest.raises(BadInput):
        wilson_interval(1.2, 10)
    with pytest.raises(BadInput):
        wilson_interval(0.5, 0)
