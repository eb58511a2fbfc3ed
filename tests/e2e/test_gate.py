"""The default gate on real rounds: which it promotes, which it stops by name, and what comes after a refused one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data import store
from pco.runs.status import RunState
from pco.stage import Stage
from tests.e2e.conftest import Case

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(6000)]

RATE = 5e-4  # learns, and changes so small a model by less than the default gate minds
DEFAULT: dict[str, Any] = {}
BAD_REWARDS = Path(__file__).parents[2] / "benchmarks"


def _set(*settings: str) -> list[str]:
    return [word for one in settings for word in ("--set", one)]


def _run(case: Case) -> Case:
    done, output = case.run()
    assert done == 0, output
    return case


@pytest.fixture(scope="module")
def good(make_case: Callable[..., Case], server: str) -> Case:
    case = make_case(run="good", rounds=1, train__learning_rate=RATE, gate=DEFAULT)
    return _run(case.under(PREFECT_API_URL=server))


@pytest.fixture(scope="module")
def harsh(good: Case) -> Case:
    return _run(good.forked("harsh", *_set(f"train.learning_rate={100 * RATE}")))


@pytest.fixture(scope="module")
def retried(harsh: Case) -> Case:
    """Of three rounds, two are refused at lower and lower rates, and two are as many as it is patient with.

    Nothing is asked of the reward: what a rate does to the perplexity is sure, and what so small a model gains is not.
    """
    gate = ("gate.otherwise=roll_back", "gate.retry_learning_rate=0.1", "gate.patience=2")
    return _run(harsh.forked("retried", *_set("rounds=3", "gate.require.reward.min_change=-1.0", *gate)))


def _broken(case: Case, number: int = 1) -> set[str]:
    """The rules that a round did not keep."""
    table = store.read_table(Stage("decide", number, case.config, {}).folder, "decisions")
    return {row["rule"] for row in table.to_pylist() if not row["passed"]}


def _trained(case: Case, number: int) -> store.Manifest:
    manifest = store.read_manifest(Stage("train", number, case.config, {}).folder)
    assert manifest is not None
    return manifest


def _sampled_from(case: Case, number: int) -> str:
    """The policy that a round's candidates are of."""
    table = store.read_table(Stage("generate", number, case.config, {}).folder, "candidates")
    (policy,) = set(table["policy"].to_pylist())
    return str(policy)


def _best(case: Case) -> Path:
    return (case.folder / "best").resolve()


def _start(case: Case) -> Path:
    return Path(case.config.policy.model)


def _report(case: Case) -> str:
    return (case.folder / "report.html").read_text()


def test_a_good_round_is_promoted_and_one_at_a_hundred_times_its_learning_rate_refused(good: Case, harsh: Case) -> None:
    assert _broken(good) == set()
    assert _best(good) == good.folder / "round-01/policy"
    assert {"reward change", "perplexity ratio"} <= _broken(harsh)
    (told,) = RunState(harsh.config).reasons
    assert told.startswith("round 1 refused: reward") and "perplexity" in told and "must be <= 1.5" in told
    assert _best(harsh) == _start(harsh)
    assert harsh.config.gate == good.config.gate


ENDS = {"n": 4, "temperature": 1.0, "max_tokens": 64, "shard_size": 8, "stop": ["."]}  # room to grow


@pytest.mark.parametrize(
    ("function", "changes", "rule"),
    [("tokens", {"generate": ENDS}, "length ratio"), ("one_word", {}, "perplexity ratio")],
)
def test_a_round_that_pleases_a_bad_reward_is_refused_for_what_it_harms(
    make_case: Callable[..., Case], server: str, function: str, changes: dict[str, Any], rule: str
) -> None:
    reward = {"kind": "python", "function": f"bad_rewards:{function}", "folder": str(BAD_REWARDS)}
    case = make_case(run=function, rounds=1, reward=reward, gate=DEFAULT, **changes)
    case = _run(case.under(PREFECT_API_URL=server))
    assert rule in _broken(case)
    assert "reward change" not in _broken(case), "it did not learn what the reward pays for"
    assert _best(case) == _start(case)


def test_a_refused_round_is_tried_again_from_the_best_policy_at_a_lower_rate_and_only_so_often(retried: Case) -> None:
    assert "perplexity ratio" in _broken(retried, 1) & _broken(retried, 2)
    assert len(RunState(retried.config).reasons) == 2, "it went on after two refusals"
    assert _best(retried) == _start(retried)
    told = retried.tell("status", str(retried.folder))
    assert "round 1 refused" in told and "round 2 refused" in told and "Nothing is left to do" in told

    done, output = retried.run("gate.patience=3")
    assert done == 0, output
    assert _broken(retried, 3) == set()
    rates = [_trained(retried, number).settings["train"]["learning_rate"] for number in (1, 2, 3)]
    assert rates == pytest.approx([100 * RATE, 10 * RATE, RATE])
    assert _sampled_from(retried, 1) == _sampled_from(retried, 2) == _sampled_from(retried, 3)
    assert _best(retried) == retried.folder / "round-03/policy"
    assert "Round 1 refused" in _report(retried) and "Round 3 promoted" in _report(retried)


def test_a_retry_that_is_killed_ends_as_one_left_alone(retried: Case) -> None:
    killed = retried.forked("killed", "--from", "generate", "--round", "2", *_set("gate.patience=2"))
    for moment in ("round-02/candidates/candidates-00002.parquet", "round-02/.policy.tmp"):
        killed.kill_before(moment)
    _run(killed)
    assert RunState(killed.config).reasons == RunState(retried.config).reasons[:2]
    assert _trained(killed, 2).outputs == _trained(retried, 2).outputs


def test_a_run_that_continues_anyway_trains_the_refused_policy_and_keeps_the_best(good: Case) -> None:
    settings = ("gate.require.reward.min_change=1.0", "gate.otherwise=continue_anyway", "rounds=2")
    case = _run(good.forked("anyway", "--from", "decide", "--round", "1", *_set(*settings)))
    assert _broken(case, 1) == {"reward change"}
    assert _sampled_from(case, 2) == _trained(case, 1).outputs["policy"]
    assert _best(case) == _start(case)
    assert "round 1 refused: reward" in case.tell("status", str(case.folder))
    assert "Round 1 refused: reward" in _report(case)
