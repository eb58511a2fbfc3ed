"""Two evaluations side by side."""

from typing import Any

import numpy as np
import pytest

from data.errors import BadInput
from pco.evaluation.compare import compare, means


def rows(values: dict[str, float], metric: str = "reward") -> list[dict[str, Any]]:
    return [
        {"measure": metric, "mode": mode, "prompt_id": prompt, "sample": 0, "value": value}
        for prompt, value in values.items()
        for mode in ("greedy", "sampled")
    ]


def test_a_difference_is_of_the_second_less_the_first_and_a_change_of_sides_mirrors_it() -> None:
    draw = np.random.default_rng(0)
    first = {str(i): float(draw.normal()) for i in range(50)}
    second = {prompt: value + 0.5 + float(draw.normal(0, 0.1)) for prompt, value in first.items()}
    (there, won), (back, lost) = compare(rows(first), rows(second)), compare(rows(second), rows(first))
    assert there.metric == "reward" and there.prompts == 50
    assert there.mean == pytest.approx(there.second - there.first)
    assert there.low > 0.4 and there.high < 0.6 and there.p < 1e-9
    assert (back.mean, back.low, back.high) == pytest.approx((-there.mean, -there.high, -there.low), abs=0.01)
    assert 0 < there.detectable < 0.1
    assert (won.metric, won.first, won.second, lost.second) == ("win", 0.5, 1.0, 0.0)


def test_a_policy_does_not_differ_from_itself() -> None:
    for line in compare(rows({"a": 1.0, "b": 2.0}), rows({"a": 1.0, "b": 2.0})):
        assert (line.mean, line.low, line.high, line.p) == (0.0, 0.0, 0.0, 1.0)


def test_more_metrics_have_larger_p_values() -> None:
    first, second = {str(i): 0.0 for i in range(6)}, {str(i): 1.0 for i in range(6)}
    alone = compare(rows(first, "length"), rows(second, "length"))[0].p
    both = compare(rows(first, "f1") + rows(first, "length"), rows(second, "f1") + rows(second, "length"))
    assert [line.p for line in both] == pytest.approx([2 * alone] * 2)


def test_evaluations_of_other_prompts_are_refused() -> None:
    with pytest.raises(BadInput, match="share no held-out prompt"):
        compare(rows({"a": 1.0}), rows({"b": 1.0}))


def test_the_mean_of_one_evaluation_is_of_its_prompts_and_lies_in_its_interval() -> None:
    (line,) = means(rows({"a": 1.0, "b": 2.0, "c": 4.0}, "f1"))
    assert (line.metric, line.mean) == ("f1", pytest.approx(7 / 3))
    assert line.low < line.mean < line.high
