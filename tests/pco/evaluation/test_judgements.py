"""AlpacaEval's annotations and a judge's verdicts as win rates: laws, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import BadInput
from pco.evaluation.export import Answer
from pco.evaluation.judgements import annotated, followed_position, rates, row, style
from pco.evaluation.length_control import controlled_rate, style_controlled_interval

ANSWERS = {f"id{i}": Answer(f"prompt {i}", f"mine {i}") for i in range(4)}


def annotation(i: int, preference: float | None, **changes: Any) -> dict[str, Any]:
    texts = {"instruction": f"prompt {i}", "output_1": f"reference {i}", "output_2": f"mine {i}"}
    return {**texts, "generator_1": "gpt4", "generator_2": "us", "preference": preference, **changes}


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "annotations.json"
    path.write_text(json.dumps(rows))
    return path


def test_a_preference_is_the_share_of_the_side_that_is_the_policys(tmp_path: Path) -> None:
    turned = {"output_1": "mine 1", "output_2": "reference 1"}
    path = written(tmp_path, annotation(0, 1.75), annotation(1, 1.75, **turned), annotation(2, 0), annotation(3, None))
    rows = annotated(path, ANSWERS)
    assert {row["prompt_id"]: row["win"] for row in rows} == {"id0": 0.75, "id1": 0.25, "id2": 0.5}
    assert (rows[0]["length"], rows[0]["other_length"]) == (len("mine 0"), len("reference 0"))


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([annotation(0, 1), annotation(7, 1), annotation(8, 1)], ["of 3 annotations", "2 of a prompt that was not"]),
        ([annotation(0, 1, output_2="other"), annotation(1, 2)], ["1 of other texts"]),
        ([annotation(0, 1), annotation(0, 2)], ["1 of a prompt again"]),
        ([annotation(0, 3)], ["row 1", "`preference`", "found 3"]),
        ([annotation(0, True)], ["`preference`"]),
        ([annotation(0, None)], ["none of 1"]),
        ([{"instruction": "prompt 0", "preference": 1}], ["`output_1`"]),
        ([], ["no rows"]),
    ],
)
def test_annotations_that_do_not_match_are_refused_with_their_numbers(
    tmp_path: Path, rows: list[dict[str, Any]], told: list[str]
) -> None:
    with pytest.raises(BadInput) as error:
        annotated(written(tmp_path, *rows), ANSWERS)
    assert all(part in str(error.value) for part in told), str(error.value)


def test_marks_of_style_are_counted_outside_of_code() -> None:
    text = "# Title\n- one\n2. two\n**bold** and __more__\n```\n# no title\n- no item\n```\n## End"
    assert style(text) == [2, 2, 2]
    assert style("plain - text 2. # with no marks") == [0, 0, 0]


def test_the_rates_of_verdicts_by_hand() -> None:
    rows = [
        row("a", "x", "y", 1.0, first=1.0, second=1.0),
        row("b", "x", "y", 0.5, first=0.75, second=0.25),
        row("c", "x", "y", 0.5, first=0.5, second=0.5),
    ]
    found = {rate.name: rate for rate in rates(rows, five_way=True)}
    assert found["win rate"].rate == pytest.approx(2 / 3)
    assert found["at equal length"].rate == pytest.approx(2 / 3)  # of equally long answers nothing is taken away
    # Two strong wins count three times each: (3 + 3 + 1 + 0 + 0.5 + 0.5) / (3 + 3 + 1 + 1 + 1 + 1).
    assert found["Arena-Hard score"].rate == pytest.approx(8 / 10)
    assert all(0 <= rate.low <= rate.rate <= rate.high <= 1 for rate in found.values())
    assert followed_position(rows) == pytest.approx(1 / 3)
    assert "Arena-Hard score" not in {rate.name for rate in rates(rows)}
    with pytest.raises(BadInput):
        rates([])


@settings(max_examples=10)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(-40, 40)), min_size=2, max_size=30))
def test_the_win_rate_at_equal_style_turns_around_with_the_sides(games: list[tuple[float, int]]) -> None:
    wins, longer = [win for win, _ in games], [[float(length), 0.0] for _, length in games]
    rate, low, high = style_controlled_interval(wins, longer)
    turned = style_controlled_interval([1 - win for win in wins], [[-length, 0.0] for length, _ in longer])
    assert turned == pytest.approx((1 - rate, 1 - high, 1 - low), abs=1e-3)
    assert 0 <= low <= high <= 1


def test_what_style_alone_decides_is_no_win_and_what_it_does_not_decide_stays() -> None:
    generator = np.random.default_rng(0)
    longer = generator.normal(size=200)
    bold = generator.normal(size=200)
    wins = (longer + bold + 0.2 * generator.normal(size=200) > -0.8).astype(float)  # styles even: 0.8 for the policy
    features = np.column_stack([longer + 1.0, bold])  # it is longer by one, which makes the win
    wins_by_style = (features.sum(axis=1) + 0.2 * generator.normal(size=200) > 0).astype(float)
    assert wins_by_style.mean() > 0.7
    rate, low, high = style_controlled_interval(wins_by_style.tolist(), features.tolist())
    assert low <= 0.5 <= high
    assert rate == pytest.approx(0.5, abs=0.15)
    rate, low, _ = style_controlled_interval(wins.tolist(), np.column_stack([longer, bold]).tolist())
    assert low > 0.5
    # With one feature that is tame it is the control of length, which squashes its input.
    small = (longer / 50).tolist()
    plain = controlled_rate(wins.tolist(), small)
    assert style_controlled_interval(wins.tolist(), [[value] for value in small])[0] == pytest.approx(plain, abs=0.05)


def test_wins_alone_leave_nothing_to_control() -> None:
    assert style_controlled_interval([1.0, 1.0], [[1.0], [2.0]]) == (1.0, 1.0, 1.0)
    assert style_controlled_interval([0.25], [[1.0]]) == (pytest.approx(0.25), 0.0, 1.0)
    with pytest.raises(BadInput):
        style_controlled_interval([], [])
