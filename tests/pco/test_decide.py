"""The gate: a round is promoted exactly when every rule passes, and says why."""

import math
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import store
from pco import decide, measures
from pco.config import Gate
from pco.stage import Artifact
from tests import builders

GATE = Gate(min_reward_gain=0.1, max_perplexity_ratio=1.5, min_length_ratio=0.8, max_length_ratio=1.25)
START = {"reward": -0.5, "perplexity": 20.0, "length": 40.0}
GOOD = {"reward": -0.25, "perplexity": 25.0, "length": 44.0}


def verdicts(new: dict[str, float], previous: dict[str, float] = START, gate: Gate = GATE) -> dict[str, bool]:
    return {ruling.rule: ruling.passed for ruling in decide.judge(new, previous, START, gate)}


def test_a_round_that_holds_all_rules_passes_them_all() -> None:
    assert verdicts(GOOD) == {"reward gain": True, "perplexity ratio": True, "length ratio": True}


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"reward": -0.45}, "reward gain"),
        ({"reward": -0.6}, "reward gain"),
        ({"perplexity": 30.1}, "perplexity ratio"),
        ({"perplexity": math.inf}, "perplexity ratio"),
        ({"length": 31.9}, "length ratio"),
        ({"length": 50.1}, "length ratio"),
        ({"length": 0.0}, "length ratio"),
        ({"reward": math.nan}, "reward gain"),
        ({"perplexity": math.nan}, "perplexity ratio"),
        ({"length": math.nan}, "length ratio"),
    ],
)
def test_each_fault_alone_fails_its_rule_alone(change: dict[str, float], rule: str) -> None:
    assert verdicts({**GOOD, **change}) == {name: name != rule for name in verdicts(GOOD)}


def test_the_bounds_themselves_are_allowed_but_a_gain_must_exceed_its_own() -> None:
    gate = Gate(min_reward_gain=0.25, max_perplexity_ratio=1.5, min_length_ratio=0.75, max_length_ratio=1.25)
    assert not verdicts({**GOOD, "reward": -0.25}, gate=gate)["reward gain"]
    assert verdicts({**GOOD, "reward": -0.24}, gate=gate)["reward gain"]
    assert verdicts({**GOOD, "perplexity": 30.0}, gate=gate)["perplexity ratio"]
    assert verdicts({**GOOD, "length": 30.0}, gate=gate)["length ratio"]
    assert verdicts({**GOOD, "length": 50.0}, gate=gate)["length ratio"]


@pytest.mark.parametrize(
    ("gains", "sure"), [([0.3, 0.2, 0.25, 0.28] * 8, True), ([2.0, -1.5] * 16, False), ([], False), ([0.25], False)]
)
def test_with_a_confidence_a_gain_must_be_more_than_luck(gains: list[float], sure: bool) -> None:
    gate = Gate(confidence=0.95)
    lax, strict = (decide.judge(GOOD, START, START, one, gains=gains)[0] for one in (Gate(), gate))
    assert lax.passed
    assert strict.passed == sure
    assert strict.bound == "> 0 with 95% confidence"
    if sure:
        assert "(+0.2500, 95% interval +0.24" in strict.reason


def test_of_rounds_that_bring_nothing_the_confidence_lets_few_pass() -> None:
    draw = np.random.default_rng(0)
    passed = 0
    for _ in range(400):
        gains = draw.normal(0, 0.1, 64).tolist()
        new = {**START, "reward": START["reward"] + fmean(gains)}
        passed += decide.judge(new, START, START, Gate(confidence=0.95), gains=gains)[0].passed
    assert passed / 400 < 0.05  # 2.5 % expected: the interval has two sides


def test_an_equal_reward_is_no_gain() -> None:
    assert not verdicts(START, gate=Gate())["reward gain"]


@given(reward=st.floats(-1, 0), previous=st.floats(-1, 0))
def test_the_gain_is_measured_against_the_previous_policy_and_the_guards_against_the_start(
    reward: float, previous: float
) -> None:
    before = {"reward": previous, "perplexity": 1e-9, "length": 1e-9}
    found = verdicts({**GOOD, "reward": reward}, before)
    assert found == {"reward gain": reward - previous > 0.1, "perplexity ratio": True, "length ratio": True}


def test_a_start_that_wrote_nothing_is_judged_and_not_a_crash() -> None:
    silent = {**START, "length": 0.0}
    (ruling,) = [one for one in decide.judge(GOOD, START, silent, GATE) if one.rule == "length ratio"]
    assert not ruling.passed


def test_a_verdict_names_every_number_of_the_rules_that_failed_and_only_those() -> None:
    told = decide.explain(2, decide.judge({**GOOD, "perplexity": 40.0}, START, START, GATE))
    assert told == "round 2 refused: perplexity on human text 20.0 -> 40.0 (+100%), must be <= 1.5"


def test_a_promotion_names_all_numbers() -> None:
    told = decide.explain(2, decide.judge(GOOD, START, START, GATE))
    assert told.startswith("round 2 promoted: held-out reward -0.5000 -> -0.2500 (+0.2500); perplexity")
    assert "mean length 40.0 -> 44.0 tokens (+10%)" in told


def evaluation(folder: Path, reward: float, perplexity: float, length: int) -> Artifact:
    rows = [
        *measures.completion_rows([builders.candidate_row(tokens=range(length))], [reward]),
        *measures.text_rows(["text"], [(-math.log(perplexity), 1)]),
    ]
    return builders.finished(folder, {"evaluations": [{**row, "policy": "digest"} for row in rows]}, "evaluate")


@pytest.mark.parametrize(("perplexity", "promoted"), [(25.0, True), (31.0, False)])
def test_the_table_holds_a_row_per_rule_and_the_verdict_in_each(
    tmp_path: Path, perplexity: float, promoted: bool
) -> None:
    start = evaluation(tmp_path / "start", -0.5, 20.0, 40)
    inputs: dict[str, Any] = {
        "evaluation": evaluation(tmp_path / "new", -0.25, perplexity, 44),
        "previous": start,
        "start": start,
    }
    stage = builders.stage("decide", builders.config(tmp_path, gate=GATE.model_dump()), inputs, number=3)
    manifest = decide.run(stage)
    rows = store.read_table(stage.folder, "decisions").to_pylist()
    assert [(row["round"], row["rule"], row["promoted"]) for row in rows] == [
        (3, rule, promoted) for rule in ("reward gain", "perplexity ratio", "length ratio")
    ]
    assert all(row["passed"] for row in rows) == promoted
    assert manifest.outputs["promoted"] == ("yes" if promoted else "no")
    assert manifest.outputs["reason"].startswith(f"round 3 {'promoted' if promoted else 'refused'}: ")
