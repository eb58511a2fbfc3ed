"""What the test of a reward model says of it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pco.reward_training.accuracy import MATCHED, measured

Row = dict[str, Any]
rewards = st.integers(-4, 4).map(float)
lengths = st.integers(1, 300)
rows = st.builds(
    lambda prompt, chosen, rejected, long_chosen, long_rejected: {
        "prompt_id": prompt,
        "reward_chosen": chosen,
        "reward_rejected": rejected,
        "length_chosen": long_chosen,
        "length_rejected": long_rejected,
    },
    st.sampled_from("abc"),
    rewards,
    rewards,
    lengths,
    lengths,
)


def swapped(row: Row) -> Row:
    other = {"chosen": "rejected", "rejected": "chosen"}
    sides = {f"{what}_{side}": row[f"{what}_{other[side]}"] for what in ("reward", "length") for side in other}
    return {"prompt_id": row["prompt_id"], **sides}


def row(reward: float, chosen: int = 10, rejected: int = 10, prompt: str = "a") -> Row:
    sides = {"length_chosen": chosen, "length_rejected": rejected}
    return {"prompt_id": prompt, "reward_chosen": reward, "reward_rejected": 0.0, **sides}


@given(st.lists(rows, min_size=1, max_size=20))
def test_swapping_chosen_and_rejected_turns_every_accuracy_round(tested: list[Row]) -> None:
    one, other = measured(tested), measured([swapped(row) for row in tested])
    assert one.reward.of_pairs == pytest.approx(1 - other.reward.of_pairs)
    assert one.reward.mean == pytest.approx(1 - other.reward.mean)
    assert one.longer.of_pairs == pytest.approx(1 - other.longer.of_pairs)
    assert one.follows_length == pytest.approx(other.follows_length)


@given(st.lists(rows, min_size=1, max_size=20))
def test_accuracy_is_the_share_of_pairs_whose_chosen_text_has_the_higher_reward_and_ties_are_half(
    tested: list[Row],
) -> None:
    points = [
        1.0 if row["reward_chosen"] > row["reward_rejected"] else 0.5 * (row["reward_chosen"] == row["reward_rejected"])
        for row in tested
    ]
    assert measured(tested).reward.of_pairs == pytest.approx(sum(points) / len(points))


@given(st.lists(rows, min_size=1, max_size=20))
def test_every_pair_stands_in_one_bin(tested: list[Row]) -> None:
    assert sum(one.pairs for one in measured(tested).calibration) == len(tested)


def test_a_prompt_of_many_pairs_counts_once_in_the_mean_over_prompts() -> None:
    share = measured([row(1.0, prompt="a")] * 9 + [row(-1.0, prompt="b")]).reward
    assert (share.of_pairs, share.mean, share.pairs, share.prompts) == (0.9, 0.5, 10, 2)
    assert share.low <= share.mean <= share.high


def test_length_matched_pairs_are_those_whose_lengths_differ_by_no_more_than_the_factor() -> None:
    found = measured([row(1.0, 110, 100), row(1.0, 100, 110), row(-1.0, 111, 100), row(-1.0, 300, 10)])
    assert MATCHED == 1.1
    assert found.matched_reward is not None
    assert (found.matched_reward.pairs, found.matched_reward.of_pairs) == (2, 1.0)
    assert measured([row(1.0, 200, 10)]).matched_reward is None


def test_a_reward_that_is_length_follows_it_wholly_and_one_that_is_its_contrary_as_wholly() -> None:
    import math

    pairs = [(30, 10), (5, 9), (7, 70)]
    follows = [row(math.log(chosen / rejected), chosen, rejected) for chosen, rejected in pairs]
    against = [row(-math.log(chosen / rejected), chosen, rejected) for chosen, rejected in pairs]
    assert measured(follows).follows_length == pytest.approx(1)
    assert measured(against).follows_length == pytest.approx(-1)


def test_calibration_is_perfect_where_winners_are_preferred_as_often_as_predicted() -> None:
    import math

    reward = math.log(3)  # a probability of three quarters
    assert measured([row(reward)] * 3 + [row(-reward)]).calibration_error == pytest.approx(0)
    assert measured([row(reward)] * 4).calibration_error == pytest.approx(0.25)
