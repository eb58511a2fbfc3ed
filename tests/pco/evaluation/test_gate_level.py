"""The gate promotes equal policies as seldom as its confidence says: the short form of benchmarks/gate_level.py."""

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

from pco.evaluation.intervals import paired_interval

CONFIDENCE = 0.9  # of the default gate
NOMINAL = 0.05  # on the side that promotes
TOLERANCE = 0.01
ROUNDS = 600


def benchmark() -> ModuleType:
    path = Path(__file__).parents[3] / "benchmarks" / "gate_level.py"
    spec = importlib.util.spec_from_file_location("gate_level", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BENCHMARK = benchmark()


@cache
def promotes(prompts: int, ups: int, downs: int, confidence: float = CONFIDENCE) -> bool:
    """Whether the gate promotes when so many prompts got better, and so many worse, each by one sample of three."""
    differences = [1 / 3] * ups + [-1 / 3] * downs + [0.0] * (prompts - ups - downs)
    return paired_interval(differences, level=confidence)[1] > 0


def exact_level_of_poisson(mean: float, prompts: int, confidence: float = CONFIDENCE) -> float:
    """How often equal policies are promoted whose ups and downs are Poisson; above 16 they hardly occur."""
    total = 0.0
    for ups in range(17):
        for downs in range(min(17, prompts - ups + 1)):
            if promotes(prompts, ups, downs, confidence):
                total += stats.poisson.pmf(ups, mean) * stats.poisson.pmf(downs, mean)
    return total


def exact_level_of_passes(rate: float, prompts: int) -> float:
    """How often equal policies are promoted that pass at that rate, with one completion a prompt."""
    total, change = 0.0, rate * (1 - rate)
    for ups in range(prompts + 1):
        for downs in range(ups):  # with more downs than ups the mean is below 0
            if ups + downs <= prompts and promotes(prompts, ups, downs):
                shares = [change, change, 1 - 2 * change]
                total += stats.multinomial.pmf([ups, downs, prompts - ups - downs], prompts, shares)
    return total


@pytest.mark.parametrize("prompts", [16, 64, 200, 805])
@pytest.mark.parametrize("mean", [0.5, 1, 1.5, 2, 3, 4])
def test_where_rewards_change_rarely_equal_policies_are_seldom_promoted(prompts: int, mean: float) -> None:
    assert exact_level_of_poisson(mean, prompts) <= NOMINAL + TOLERANCE


@pytest.mark.parametrize("prompts", [16, 64])
@pytest.mark.parametrize("rate", [0.5, 0.8, 0.95, 0.99])
def test_where_a_reward_is_passed_or_not_equal_policies_are_seldom_promoted(prompts: int, rate: float) -> None:
    assert exact_level_of_passes(rate, prompts) <= NOMINAL + TOLERANCE


@pytest.mark.parametrize("confidence", [0.8, 0.9, 0.95, 0.99])
def test_the_level_holds_at_other_confidences_too(confidence: float) -> None:
    for mean in (0.5, 1, 1.5, 2, 3, 4):
        assert exact_level_of_poisson(mean, 64, confidence) <= (1 - confidence) / 2 + TOLERANCE


@pytest.mark.parametrize("completions", [1, 3])
@pytest.mark.parametrize("name", ["normal", "heavy-tailed", "wins", "repetition of 30 %", "repetition of 5 %"])
def test_of_many_simulated_rounds_equal_policies_are_seldom_promoted(name: str, completions: int) -> None:
    assert simulated_level(name, "gate", completions) <= NOMINAL + TOLERANCE + 2 * standard_error()


def test_the_simulation_finds_an_interval_that_does_not_hold_its_level() -> None:
    """The studentized bootstrap, which the gate used before."""
    assert simulated_level("pass rate 95%", "bootstrap", 3) > NOMINAL + TOLERANCE + 2 * standard_error()


def simulated_level(name: str, test: str, completions: int, prompts: int = 16) -> float:
    equal, _ = BENCHMARK.FAMILIES[name](prompts, completions)
    differences = equal(np.random.default_rng(0), ROUNDS, prompts, completions)
    both = [BENCHMARK.promoted(test, sign * differences, NOMINAL) for sign in (1, -1)]
    return sum(both) / 2


@pytest.mark.parametrize("correlation", [0.0, 0.95])
@pytest.mark.parametrize("name", ["normal", "heavy-tailed", "wins", "repetition of 30 %", "pass rate 50%"])
def test_with_a_cheap_measure_beside_a_judge_equal_policies_are_seldom_promoted(name: str, correlation: float) -> None:
    equal, _ = BENCHMARK.FAMILIES[name](64, 1)
    generator = np.random.default_rng(0)
    differences = equal(generator, ROUNDS, 64, 1)
    cheap = BENCHMARK.cheap_measure(differences, correlation, generator)
    both = [BENCHMARK.powered(sign * differences, cheap * sign, 16, NOMINAL) for sign in (1, -1)]
    assert sum(both) / 2 <= NOMINAL + TOLERANCE + 2 * standard_error()


def test_a_cheap_measure_that_goes_with_the_judge_finds_more_than_the_judged_prompts_alone() -> None:
    _, better = BENCHMARK.FAMILIES["wins"](200, 1)
    generator = np.random.default_rng(0)
    differences = better(generator, ROUNDS, 200, 1)
    cheap = BENCHMARK.cheap_measure(differences, 0.95, generator)
    found = BENCHMARK.powered(differences, cheap, 50, NOMINAL)
    alone = BENCHMARK.promoted("gate", differences[:, :50], NOMINAL)
    all_judged = BENCHMARK.promoted("gate", differences, NOMINAL)
    assert alone + 0.1 < found <= all_judged + 0.02


def standard_error() -> float:
    return float(np.sqrt(NOMINAL * (1 - NOMINAL) / (2 * ROUNDS)))


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize(("ups", "downs"), [(1, 0), (2, 0), (1, 1)])
def test_one_or_two_prompts_of_many_that_changed_promote_nothing(ups: int, downs: int, confidence: float) -> None:
    assert not promotes(805, ups, downs, confidence)


def test_a_better_policy_is_found_as_often_as_by_students_t() -> None:
    for name in ("normal", "wins", "pass rate 80%", "Poisson(2) up and down"):
        _, better = BENCHMARK.FAMILIES[name](64, 1)
        differences = better(np.random.default_rng(1), ROUNDS, 64, 1)
        found, expected = (BENCHMARK.promoted(test, differences, NOMINAL) for test in ("gate", "t"))
        assert found == pytest.approx(expected, abs=0.01)
        assert found > 0.3
