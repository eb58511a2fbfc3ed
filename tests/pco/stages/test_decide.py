"""The gate: a round is promoted exactly when every rule passes, and says why."""

import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import files, store
from data.errors import AwaitsAnswer, BadInput, CorruptArtifact
from pco.config.gate import Gate
from pco.config.run import parse
from pco.evaluation import metrics
from pco.evaluation.gate import RuleResult, apply_rules, explain
from pco.evaluation.intervals import detectable_difference
from pco.evaluation.rows import EvaluationRow
from pco.runs import approvals
from pco.runs.approvals import Answer
from pco.stage import Artifact, Stage
from pco.stages import decide
from tests import builders

GATE = Gate.model_validate(
    {
        "require": {"reward": {"min_change": 0.1, "confidence": None}},
        "guards": {
            "perplexity": {"max_ratio": 1.5},
            "length": {"min_ratio": 0.8, "max_ratio": 1.25},
            "repetition": None,
        },
    }
)
Values = dict[str, float | list[float]]
START: Values = {"reward": -0.5, "perplexity": 20.0, "length": 40.0}
GOOD: Values = {"reward": -0.25, "perplexity": 25.0, "length": 44.0}


def rows(values: Values) -> list[EvaluationRow]:
    """An evaluation: one number for all prompts, or one for each; the perplexity is that of a single text."""
    found: list[EvaluationRow] = []
    for metric, value in values.items():
        if metric == "perplexity":
            logprob = -math.log(value)  # type: ignore[arg-type]
            found += metrics.text_rows(["text"], [(logprob, 1)])
            continue
        found += [
            {"measure": metric, "mode": "greedy", "prompt_id": str(i), "sample": 0, "value": one}
            for i, one in enumerate(value if isinstance(value, list) else [value] * 4)
        ]
    return found


def results(new: Values, previous: Values = START, gate: Gate = GATE, start: Values = START) -> list[RuleResult]:
    return apply_rules(rows(new), {"previous": rows(previous), "start": rows(start)}, gate)


def passed(new: Values, previous: Values = START, gate: Gate = GATE, start: Values = START) -> dict[str, bool]:
    return {result.rule: result.passed for result in results(new, previous, gate, start)}


def rule(metric: str, kind: str, **bounds: Any) -> Gate:
    """A gate of this one rule, with no bounds but these."""
    blank = dict.fromkeys(("min", "max", "min_change", "max_change", "min_ratio", "max_ratio", "confidence"))
    rules: dict[str, Any] = {
        "require": {"reward": None},
        "guards": dict.fromkeys(("perplexity", "length", "repetition")),
    }
    rules[kind] = {**rules[kind], metric: {**blank, **bounds}}
    return Gate.model_validate(rules)


def test_a_round_that_holds_all_rules_passes_them_all() -> None:
    assert passed(GOOD) == {"reward change": True, "perplexity ratio": True, "length ratio": True}


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({"reward": -0.45}, "reward change"),
        ({"reward": -0.6}, "reward change"),
        ({"perplexity": 30.1}, "perplexity ratio"),
        ({"perplexity": math.inf}, "perplexity ratio"),
        ({"length": 31.9}, "length ratio"),
        ({"length": 50.1}, "length ratio"),
        ({"length": 0.0}, "length ratio"),
        ({"reward": math.nan}, "reward change"),
        ({"perplexity": math.nan}, "perplexity ratio"),
        ({"length": math.nan}, "length ratio"),
    ],
)
def test_each_fault_alone_fails_its_rule_alone(change: Values, failed: str) -> None:
    assert passed({**GOOD, **change}) == {name: name != failed for name in passed(GOOD)}


def test_a_guard_allows_its_bounds_and_a_requirement_must_be_exceeded() -> None:
    for kind, at_the_bound in (("guards", True), ("require", False)):
        lower = rule("length", kind, min_ratio=0.75, against="start")
        upper = rule("length", kind, max_ratio=1.25, against="start")
        assert passed({"length": 30.0}, gate=lower) == {"length ratio": at_the_bound}
        assert passed({"length": 50.0}, gate=upper) == {"length ratio": at_the_bound}
        assert passed({"length": 40.0}, gate=lower) == passed({"length": 40.0}, gate=upper) == {"length ratio": True}


SURE, NOISE = [0.3, 0.2, 0.25, 0.28] * 8, [2.0, -1.5] * 16


@pytest.mark.parametrize(("differences", "sure"), [(SURE, True), (NOISE, False), ([0.25], False)])
def test_a_requirement_with_a_confidence_must_be_more_than_luck(differences: list[float], sure: bool) -> None:
    before: Values = {"reward": [0.0] * len(differences)}
    lax, strict = (rule("reward", "require", min_change=0.0, confidence=one) for one in (None, 0.95))
    assert passed({"reward": differences}, before, lax) == {"reward change": True}
    (result,) = results({"reward": differences}, before, strict)
    assert result.passed == sure
    assert result.bound == "> 0 with 95% confidence"
    if sure:
        assert "(+0.2575 [+0.24" in result.reason
        assert result.low is not None and result.high is not None and 0 < result.low < result.value < result.high


@pytest.mark.parametrize(("differences", "harmed"), [(SURE, True), (NOISE, False), ([0.25], False)])
def test_a_guard_with_a_confidence_refuses_only_what_is_sure_to_be_harm(differences: list[float], harmed: bool) -> None:
    before: Values = {"repetition": [0.0] * len(differences)}
    lax, patient = (rule("repetition", "guards", max_change=0.1, confidence=one) for one in (None, 0.95))
    assert passed({"repetition": differences}, gate=lax, start=before) == {"repetition change": False}
    assert passed({"repetition": differences}, gate=patient, start=before) == {"repetition change": not harmed}


def test_several_guards_with_a_confidence_share_the_risk_of_a_false_alarm() -> None:
    draw, names = np.random.default_rng(1), ("repetition", "repetition_4", "entropy", "f1")
    guard = {"max_change": 0.0, "confidence": 0.9}
    none = {"perplexity": None, "length": None}
    gate = Gate.model_validate({"require": {"reward": None}, "guards": {**none, **dict.fromkeys(names, guard)}})
    start, refused = rows({name: [0.0] * 48 for name in names}), 0
    for _ in range(200):
        new = rows({name: draw.normal(0, 1, 48).tolist() for name in names})
        refused += not all(result.passed for result in apply_rules(new, {"start": start}, gate))
    assert refused / 200 < 0.1  # 5 % expected of all four together; uncorrected it would be 18 %


def test_of_rounds_that_bring_nothing_the_default_gate_promotes_one_in_twenty() -> None:
    draw = np.random.default_rng(0)
    promoted = 0
    for _ in range(600):
        before, after = (draw.normal(0, 0.1, 64).tolist() for _ in range(2))
        fixed: Values = {"perplexity": 20.0, "length": 40.0, "repetition": 0.1}
        new, old = rows({**fixed, "reward": after}), rows({**fixed, "reward": before})
        promoted += all(result.passed for result in apply_rules(new, {"previous": old, "start": old}, Gate()))
    assert 0.02 < promoted / 600 < 0.08  # 5 % expected, one side of a 90 % interval; standard error 0.9 %


def test_a_gain_of_the_detectable_size_is_promoted_as_often_as_its_power_says() -> None:
    draw = np.random.default_rng(0)
    prompts, deviation = 64, 0.1
    gain = detectable_difference(deviation, prompts, power=0.8, level=0.9)
    gate, promoted = rule("reward", "require", min_change=0.0, confidence=0.9), 0
    start: Values = {"reward": [0.0] * prompts}
    for _ in range(400):
        promoted += passed({"reward": draw.normal(gain, deviation, prompts).tolist()}, start, gate)["reward change"]
    assert 0.74 < promoted / 400 < 0.86  # standard error 2 %


@pytest.mark.parametrize(("noise", "harmed"), [(0.01, True), (2.0, False)])
def test_a_ratio_is_bounded_with_the_confidence_of_its_prompts_or_texts(noise: float, harmed: bool) -> None:
    draws = np.random.default_rng(0).normal(0, noise, 40)
    centred = (draws - draws.mean()).tolist()
    lengths: Values = {"length": [40 * (1.25 + one) for one in centred]}
    fixed: Values = {"length": [40.0] * 40}
    gate = rule("length", "guards", max_ratio=1.2, confidence=0.9)
    assert passed(lengths, gate=gate, start=fixed) == {"length ratio": not harmed}

    before = metrics.text_rows([str(i) for i in range(40)], [(-120.0, 40)] * 40)
    after = metrics.text_rows(
        [str(i) for i in range(40)], [(-120 - 40 * (math.log(1.25) + one), 40) for one in centred]
    )
    (result,) = apply_rules(after, {"start": before}, rule("perplexity", "guards", max_ratio=1.2, confidence=0.9))
    assert result.value == pytest.approx(1.25)
    assert result.passed != harmed


def test_a_win_rate_is_held_by_itself() -> None:
    gate = rule("win_vs_previous", "require", min=0.5, confidence=0.95)
    assert passed({"win_vs_previous": [1.0, 1.0, 1.0, 0.5] * 10}, gate=gate) == {"win_vs_previous": True}
    (result,) = results({"win_vs_previous": [1.0, 0.0, 1.0, 0.5] * 10}, gate=gate)
    assert not result.passed
    assert result.reason.startswith("win_vs_previous 0.625 [+0.4")


def test_an_equal_reward_is_no_gain() -> None:
    assert not passed(START, gate=rule("reward", "require", min_change=0.0))["reward change"]


@given(reward=st.floats(-1, 0), previous=st.floats(-1, 0))
def test_the_gain_is_measured_against_the_previous_policy_and_the_guards_against_the_start(
    reward: float, previous: float
) -> None:
    before: Values = {"reward": previous, "perplexity": 1.0, "length": 1e-9}
    found = passed({**GOOD, "reward": reward}, before)
    assert found == {"reward change": reward - previous > 0.1, "perplexity ratio": True, "length ratio": True}


def test_a_start_that_wrote_nothing_is_compared_and_not_a_crash() -> None:
    assert not passed(GOOD, start={**START, "length": 0.0})["length ratio"]
    assert passed({**GOOD, "length": 0.0}, start={**START, "length": 0.0})["length ratio"]


def test_a_refusal_names_every_number_of_the_rules_that_failed_and_only_those() -> None:
    message = explain(2, results({**GOOD, "perplexity": 40.0}))
    assert message == "round 2 refused: perplexity 20 -> 40 (+100% vs start), must be <= 1.5"


def test_a_promotion_names_all_numbers() -> None:
    message = explain(2, results(GOOD))
    assert message.startswith(
        "round 2 promoted: reward -0.5000 -> -0.2500 (+0.2500 [+0.2500, +0.2500] vs previous); perp"
    )
    assert "length 40 -> 44 (+10% vs start)" in message


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ({"guards": {"lenght": {"max_ratio": 2}}}, "no metric is called `lenght`. Did you mean `length`?"),
        ({"require": {"entropy": {}}}, "gate.require.entropy: has no bound: give min, max"),
        (
            {"guards": {"length": {"min_ratio": 2.0}}},
            "min_ratio (2.0) is above max_ratio (1.5), so no round could pass",
        ),
        ({"guards": {"length": {"max_ration": 2.0}}}, "gate.guards.length.max_ration: unknown key. Did you mean `max_"),
        ({"guards": {"distinct_2": {"min_change": -0.1, "confidence": 0.9}}}, "has a `confidence`, but it is one num"),
        ({"guards": {"perplexity": {"max": 99, "max_ratio": None, "confidence": 0.9}}}, "goes with min_ratio and max"),
        ({"require": {"reward": {"min_ratio": 1.1}}}, "means nothing where rewards may be negative: use min_change"),
        ({"guards": {"win_vs_start": {"min_change": 0}}}, "compares with the start, of which it is not known"),
        (
            {"guards": {"second_reward": {"min_change": 0}}},
            "second_reward: nothing is measured by it: set evaluate.sec",
        ),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(tmp_path: Path, gate: Any, message: str) -> None:
    with pytest.raises(BadInput, match=re.escape(message)):
        parse({**builders.raw_config(tmp_path), "gate": gate}, source="config")


def test_what_a_config_says_of_a_rule_changes_the_default_and_null_drops_it() -> None:
    gate = Gate.model_validate({"guards": {"length": {"max_ratio": 2.0}, "perplexity": None}})
    length, perplexity, repetition = (gate.guards[name] for name in ("length", "perplexity", "repetition"))
    assert length is not None and (length.min_ratio, length.max_ratio) == (0.8, 2.0)
    assert perplexity is None and repetition is not None
    assert Gate.model_validate(gate.model_dump()) == gate


def evaluation(folder: Path, reward: float, perplexity: float, length: int) -> Artifact:
    written = rows({"reward": reward, "perplexity": perplexity, "length": float(length)})
    return builders.finished(folder, {"evaluations": [{**row, "policy": "digest"} for row in written]}, "evaluate")


def decision(tmp_path: Path, perplexity: float, **gate: Any) -> Stage:
    start = evaluation(tmp_path / "start", -0.5, 20.0, 40)
    new = evaluation(tmp_path / "new", -0.25, perplexity, 44)
    config = builders.config(tmp_path, gate={**GATE.model_dump(), **gate})
    return builders.stage("decide", config, {"evaluation": new, "previous": start, "start": start}, number=3)


@pytest.mark.parametrize(("perplexity", "promoted"), [(25.0, True), (31.0, False)])
def test_the_table_holds_a_row_per_rule_and_the_decision_in_each(
    tmp_path: Path, perplexity: float, promoted: bool
) -> None:
    stage = decision(tmp_path, perplexity)
    manifest = decide.run(stage)
    written = store.read_table(stage.folder, "decisions").to_pylist()
    assert [(row["round"], row["rule"], row["promoted"]) for row in written] == [
        (3, name, promoted) for name in ("reward change", "perplexity ratio", "length ratio")
    ]
    assert all(row["passed"] for row in written) == promoted
    assert manifest.outputs["promoted"] == ("yes" if promoted else "no")
    assert manifest.outputs["reason"].startswith(f"round 3 {'promoted' if promoted else 'refused'}: ")


@pytest.mark.parametrize(("approve", "answered"), [(True, "approved"), (False, "refused for good")])
def test_a_refused_round_may_wait_for_a_person_whose_answer_is_the_decision(
    tmp_path: Path, approve: bool, answered: str
) -> None:
    stage = decision(tmp_path, 31.0, otherwise="ask")
    with pytest.raises(AwaitsAnswer, match=r"round 3 refused: perplexity .* `pco answer test approve`"):
        decide.run(stage)
    assert store.read_manifest(stage.folder) is None
    approvals.write(stage, Answer(approve, "the texts read well", "Ada"))
    manifest = decide.run(stage)
    assert manifest.outputs["promoted"] == ("yes" if approve else "no")
    assert manifest.outputs["reason"].endswith(f"; asked, it was {answered} by Ada (the texts read well)")
    with pytest.raises(BadInput, match="decided already"):
        approvals.write(stage, Answer(approve=True))


def test_a_round_that_passes_asks_nobody(tmp_path: Path) -> None:
    assert decide.run(decision(tmp_path, 25.0, otherwise="ask")).outputs["promoted"] == "yes"


def test_an_answer_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    stage = decision(tmp_path, 31.0, otherwise="ask")
    files.write_text(stage.folder / "answer.json", '{"approve": tr')
    with pytest.raises(CorruptArtifact, match=r"answer.json: holds no answer"):
        decide.run(stage)


def in_doubt(differences: list[float], kind: str = "require", **bounds: Any) -> str | None:
    before: Values = {"reward": [0.0] * len(differences)}
    gate = rule("reward", kind, **{"confidence": 0.9, "against": "previous", **bounds})
    (result,) = results({"reward": differences}, before, gate)
    assert result.doubt is None or result.doubt in explain(1, [result])
    return result.doubt


def test_a_rule_in_doubt_says_how_many_prompts_would_decide() -> None:
    doubt = in_doubt(NOISE, min_change=0.0)
    assert doubt is not None
    assert "139 prompts would decide, 107 more than now" in doubt
    assert in_doubt(NOISE * 5, min_change=0.0) is None  # so many do
    assert in_doubt([-value for value in NOISE], min_change=0.0) is None  # the mean says no, too
    assert in_doubt(SURE, min_change=0.0) is None
    assert in_doubt([-value for value in NOISE], "guards", min_change=0.0) == doubt  # whether it is harm
    assert in_doubt(SURE, "guards", min_change=0.0) is None


def test_a_doubt_that_no_affordable_number_of_prompts_removes_is_told_as_that() -> None:
    assert "no affordable number of prompts" in str(in_doubt([1.0, -0.99] * 16, min_change=0.0))
    assert "too few prompts changed" in str(in_doubt([1.0, 1.0] + [0.0] * 98, min_change=0.0, confidence=0.8))
    assert "a single one" in str(in_doubt([0.25], min_change=0.0))


def test_of_few_judged_prompts_a_metric_of_all_makes_the_gate_surer_and_never_shifts_it() -> None:
    draw = random.Random(0)
    quality = [draw.gauss(0.3, 1) for _ in range(200)]
    judged = [value + draw.gauss(0, 0.2) for value in quality]
    gate = rule("reward", "require", min_change=0.0, confidence=0.9, against="previous")
    helped = Gate.model_validate({**gate.model_dump(), "judged": {"share": 0.1, "beside": "length"}})

    def result(count: int, gate: Gate) -> RuleResult:
        zeros: Values = {"reward": [0.0] * count, "length": [0.0] * 200}
        (found,) = results({"reward": judged[:count], "length": [10 * value + 7 for value in quality]}, zeros, gate)
        return found

    alone, with_length, all_judged = result(20, gate), result(20, helped), result(200, gate)
    assert not alone.passed and with_length.passed and all_judged.passed
    assert "judged on 20 of 200 prompts with length beside" in with_length.reason
    assert with_length.low is not None and with_length.high is not None
    assert alone.low is not None and alone.high is not None
    assert with_length.high - with_length.low < 0.6 * (alone.high - alone.low)
    assert with_length.low < all_judged.value < with_length.high
    assert with_length.value == pytest.approx((with_length.low + with_length.high) / 2)
    assert str(alone.doubt).startswith("at this difference")
    assert result(200, helped) == all_judged or result(200, helped).value == pytest.approx(all_judged.value)


def test_a_doubt_about_judged_prompts_counts_judgements() -> None:
    gate = rule("reward", "require", min_change=0.0, confidence=0.9, against="previous")
    helped = Gate.model_validate({**gate.model_dump(), "judged": {"share": 0.5, "beside": "length"}})
    zeros: Values = {"reward": [0.0] * 32, "length": [0.0] * 64}
    (found,) = results({"reward": NOISE, "length": [1.0, -2.0, 3.0, 0.0] * 16}, zeros, helped)
    assert not found.passed
    assert "judged prompts would decide" in str(found.doubt)
    (none,) = results({"length": [1.0] * 64}, zeros, helped)
    assert not none.passed and none.doubt is None
