"""The error rate of a whole run: how the rounds share it."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data.errors import BadInput
from pco.config.gate import Gate
from pco.config.run import RunConfig
from pco.evaluation.gate import promise
from pco.runs.status import RunState
from pco.stage import Stage
from tests import builders

RATE = 0.05


def run_of(folder: Path, rounds: int = 4, rate: float | None = RATE) -> RunConfig:
    builders.write_prompts(folder, ["a"], ["b"])
    gate = {"otherwise": "roll_back", "patience": 9, "error_rate": rate}
    return builders.config(folder, rounds=rounds, gate=gate)


def shares(stages: list[Stage]) -> dict[int, float]:
    return {stage.round: stage.config.gate.share or 0.0 for stage in stages if stage.name == "decide"}


@settings(max_examples=25)  # each plays a run on disk
@given(rounds=st.integers(1, 6), refused=st.sets(st.integers(1, 6)), rate=st.floats(0.001, 0.4))
def test_refused_rounds_spend_no_more_than_the_rate_and_promoted_ones_hand_their_share_on(
    tmp_path_factory: pytest.TempPathFactory, rounds: int, refused: set[int], rate: float
) -> None:
    config = run_of(tmp_path_factory.mktemp("run"), rounds, rate)
    spent = 0.0
    for number, share in shares(builders.played(config, refused=refused)).items():
        assert share == pytest.approx((rate - spent) / (rounds - number + 1), rel=1e-4)
        spent += share if number in refused else 0.0
    assert spent <= rate * (1 + 1e-4)


def test_a_run_that_refuses_all_rounds_gives_each_the_same_share(tmp_path: Path) -> None:
    assert shares(builders.played(run_of(tmp_path), refused={1, 2, 3, 4})) == pytest.approx(
        dict.fromkeys(range(1, 5), RATE / 4)
    )


def test_rounds_that_are_added_share_what_is_left_and_those_that_are_decided_stay(tmp_path: Path) -> None:
    config = run_of(tmp_path)
    before = {
        stage.round: stage.fingerprint for stage in builders.played(config, refused={1}) if stage.name == "decide"
    }
    longer = builders.changed(config, rounds=6)
    stages = builders.played(longer, refused={1})
    after = {stage.round: stage.fingerprint for stage in stages if stage.name == "decide"}
    assert {number: after[number] for number in before} == before
    left = RATE - RATE / 4
    assert shares(stages)[5] == pytest.approx(left / 2) and shares(stages)[6] == pytest.approx(left)
    assert RunState(longer).is_finished


def test_a_round_that_could_not_be_promoted_is_not_begun(tmp_path: Path) -> None:
    config = run_of(tmp_path)
    every = {1, 2, 3, 4}
    builders.played(config, refused=every)
    longer = builders.changed(config, rounds=5)
    with pytest.raises(BadInput, match=r"have spent 0\.05 of 0\.05.*gate\.error_rate=0\.1"):
        builders.played(longer, refused=every)
    assert not (config.folder / "round-05" / "candidates").exists()
    assert "would be refused: gate.error_rate" in RunState(longer).to_do
    raised = builders.changed(longer, gate__error_rate=0.1)
    assert shares(builders.played(raised, refused=every))[5] == pytest.approx(0.05)


def test_without_a_rate_the_gate_is_what_it_was(tmp_path: Path) -> None:
    stages = builders.played(run_of(tmp_path, rate=None), refused={2})
    assert shares(stages) == pytest.approx(dict.fromkeys(range(1, 5), 0.05))
    assert {
        stage.settings["gate"]["require"]["reward"]["confidence"] for stage in stages if stage.name == "decide"
    } == {0.9}


def test_a_rate_sets_the_confidence_of_every_requirement_that_has_an_interval() -> None:
    rules = {"win_vs_previous": {"min": 0.5}, "distinct_2": {"min": 0.1}, "perplexity": {"max_ratio": 2}}
    gate = Gate.model_validate({"require": rules, "error_rate": 0.1}).of_round(0.02)
    confidences = {name: rule.confidence for name, rule in gate.require.items() if rule is not None}
    assert confidences == {"reward": 0.96, "win_vs_previous": 0.96, "distinct_2": None, "perplexity": 0.96}
    assert gate.error_rate is None and gate.share == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"require": {"reward": {"confidence": 0.95}}}, "both say how sure"),
        ({"require": {"reward": None}}, "no metric under `require` has an interval"),
        ({"require": {"reward": None, "distinct_1": {"min": 0.2}}}, "no metric under `require` has an interval"),
        ({"error_rate": 0.0}, "greater than 0"),
        ({"error_rate": 0.5}, "less than 0.5"),
    ],
)
def test_a_rate_that_says_something_else_than_the_rules_is_refused(settings: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Gate.model_validate({"error_rate": 0.05, **settings})


def test_what_a_gate_promises_is_said_in_plain_words() -> None:
    whole = promise(Gate(error_rate=0.05), 4)
    assert whole.startswith("Of runs that bring nothing, at most one in 20 promotes something")
    each = promise(Gate(), 4)
    assert "Of rounds that bring nothing, at most one in 20 is promoted; of runs of 4 such rounds up to 19%" in each
    assert promise(Gate.model_validate({"require": {"reward": {"confidence": None}}}), 4) == ""


def benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "gate_runs.py"
    spec = importlib.util.spec_from_file_location("gate_runs", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("rounds", [4, 8])
@pytest.mark.parametrize("family", ["normal", "repetition of 60 %"])
def test_of_runs_that_bring_nothing_few_enough_promote_something(rounds: int, family: str) -> None:
    simulation, runs = benchmark(), 800
    draw, _ = simulation.FAMILIES[family](64)

    def promoting(rule: str) -> float:
        plan = simulation.Plan(simulation.RULES[rule], draw, 64, rounds, runs, RATE)
        return float(plan.promoted(np.random.default_rng(rounds), np.zeros(rounds)).any(axis=1).mean())

    noise = 2.6 * np.sqrt(RATE * (1 - RATE) / runs)
    assert promoting("handed on") <= RATE + noise < promoting("per round")
