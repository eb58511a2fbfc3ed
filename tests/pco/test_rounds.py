"""The order of the stages, and where a run goes after a round that the gate refused."""

from pathlib import Path
from typing import Any

import pytest

from data.errors import RunConflict
from pco.config.run import RunConfig
from pco.rounds import is_over, plan, walk
from pco.runs import fork, status
from pco.runs.folder import BEST, check_same, opened, point_to_best
from pco.runs.status import RunState
from pco.stage import Stage
from tests import builders


def run_of(tmp_path: Path, otherwise: str, **gate: Any) -> RunConfig:
    builders.write_prompts(tmp_path, ["a"], ["b"])
    return builders.config(tmp_path, rounds=5, gate={"otherwise": otherwise, **gate})


def trainings(stages: list[Stage]) -> dict[int, tuple[str, float]]:
    """For each round, the policy that it was trained from, and its learning rate."""
    return {
        stage.round: (_round_of(stage, "policy"), stage.config.train.learning_rate)
        for stage in stages
        if stage.name == "train"
    }


def _round_of(stage: Stage, name: str) -> str:
    folder = stage.inputs[name].folder
    return folder.parent.name if folder.parent.name.startswith("round-") else "start"


def test_each_round_goes_on_from_the_one_before_it(tmp_path: Path) -> None:
    found = trainings(builders.played(run_of(tmp_path, "stop")))
    assert [policy for policy, _ in found.values()] == ["start", "round-01", "round-02", "round-03", "round-04"]


def test_rounds_may_train_the_starting_policy_anew_on_what_the_best_one_wrote(tmp_path: Path) -> None:
    config = builders.changed(run_of(tmp_path, "roll_back"), train__begin_from="start")
    stages = builders.played(config, refused={2})
    assert {policy for policy, _ in trainings(stages).values()} == {"start"}
    sampled = [_round_of(stage, "policy") for stage in stages if stage.name == "generate"]
    assert sampled == ["start", "round-01", "round-01", "round-03", "round-04"]


def test_a_fork_that_begins_from_the_start_keeps_the_first_round_which_does_so_either_way(tmp_path: Path) -> None:
    config = run_of(tmp_path, "stop")
    builders.played(config)
    forked = builders.changed(config, run="forked", train__begin_from="start")
    shared = [(stage.round, stage.name) for stage in fork.fork(config, forked, None).shared]
    assert shared[-1] == (2, "pair")
    assert {policy for policy, _ in trainings(builders.played(forked)).values()} == {"start"}
    assert RunState(forked).is_finished


def test_a_run_whose_rounds_begin_from_the_start_is_resumed_where_it_was_cut(tmp_path: Path) -> None:
    config = builders.changed(run_of(tmp_path, "stop"), train__begin_from="start", replay__rounds="all")
    before = [stage.fingerprint for stage in builders.played(config, until=(3, "train"))]
    stages = builders.played(config)
    assert [stage.fingerprint for stage in stages][: len(before)] == before
    assert trainings(stages)[3][0] == "start"
    with pytest.raises(RunConflict, match=r"train\.begin_from: 'start' there, 'previous' now"):
        check_same(builders.changed(config, train__begin_from="previous"))


@pytest.mark.parametrize(
    ("replay", "told"),
    [
        ({"rounds": 0}, "own pairs alone: set replay.rounds to `all`"),
        ({"rounds": "all", "share": "all"}, "own pairs and all pairs of all earlier rounds."),
        ({"rounds": 2, "share": 0.5}, "own pairs and at most 0.5 pair(s) for each of them of 2 earlier round(s)."),
    ],
)
def test_a_plan_tells_what_rounds_train_on_that_begin_from_the_start(
    tmp_path: Path, replay: dict[str, Any], told: str
) -> None:
    config = builders.config(tmp_path, replay=replay)
    assert plan(config) == ""
    assert told in plan(builders.changed(config, train__begin_from="start"))


@pytest.mark.parametrize("otherwise", ["stop", "ask"])
def test_a_refused_round_ends_the_run(tmp_path: Path, otherwise: str) -> None:
    config = run_of(tmp_path, otherwise)
    assert max(trainings(builders.played(config, refused=2))) == 2
    assert RunState(config).is_finished
    assert status.of_all(config.folder.parent)[0].state == "refused by the gate"


def test_a_run_that_rolls_back_tries_again_from_the_best_policy_with_gentler_steps(tmp_path: Path) -> None:
    config = run_of(tmp_path, "roll_back", retry_learning_rate=0.5)
    rate = config.train.learning_rate
    assert trainings(builders.played(config, refused={2, 3})) == {
        1: ("start", rate),
        2: ("round-01", rate),
        3: ("round-01", rate / 2),
        4: ("round-01", rate / 4),
        5: ("round-04", rate),
    }
    assert status.of_all(config.folder.parent)[0].state == "finished"


def test_a_run_that_continues_anyway_is_held_against_the_best_policy_all_the_same(tmp_path: Path) -> None:
    config = run_of(tmp_path, "continue_anyway")
    stages = builders.played(config, refused={2, 3})
    found = trainings(stages)
    assert [policy for policy, _ in found.values()] == ["start", "round-01", "round-02", "round-03", "round-04"]
    assert {rate for _, rate in found.values()} == {config.train.learning_rate}
    against = {stage.round: _round_of(stage, "previous") for stage in stages if stage.name == "decide"}
    assert against == {1: "round-00", 2: "round-01", 3: "round-01", 4: "round-01", 5: "round-04"}


@pytest.mark.parametrize("otherwise", ["roll_back", "continue_anyway"])
def test_refused_rounds_in_a_row_end_the_run_when_patience_is_over(tmp_path: Path, otherwise: str) -> None:
    config = run_of(tmp_path, otherwise, patience=2)
    assert max(trainings(builders.played(config, refused={1, 3, 4}))) == 4
    assert RunState(config).is_finished
    assert status.of_all(config.folder.parent)[0].state == "refused by the gate"


def test_candidates_are_fresh_in_every_round_and_come_from_the_policy_that_is_trained(tmp_path: Path) -> None:
    stages = builders.played(run_of(tmp_path, "roll_back"), refused={2})
    for stage in stages:
        if stage.name == "generate":
            assert _round_of(stage, "policy") == trainings(stages)[stage.round][0]
    drawn = [stage.fingerprint for stage in stages if stage.name == "generate"]
    assert len(set(drawn)) == len(drawn)


def test_a_refused_run_goes_on_when_the_gate_is_told_to_roll_back(tmp_path: Path) -> None:
    config = run_of(tmp_path, "stop")
    builders.played(config, refused={2})
    forgiving = builders.changed(config, gate__otherwise="roll_back")
    assert not RunState(forgiving).is_finished
    assert max(trainings(builders.played(forgiving, refused={2}))) == 5


@pytest.mark.parametrize(
    ("verdicts", "over"),
    [([True], False), ([False], False), ([True, False], False), ([False, False], True), ([True] * 5, True)],
)
def test_a_run_is_over_after_its_rounds_or_its_patience(tmp_path: Path, verdicts: list[bool], over: bool) -> None:
    assert is_over(run_of(tmp_path, "roll_back", patience=2), verdicts) == over


def test_the_best_policy_has_a_name_that_leads_to_it(tmp_path: Path) -> None:
    config = run_of(tmp_path, "continue_anyway")
    builders.played(config, refused={3, 5})
    best = config.folder / BEST
    leads = []
    with opened(config):
        for folder in (Path("/a/model"), *_bests(config)):
            point_to_best(config, folder)
            leads.append(best.readlink())
    policies = [Path(f"round-{number:02d}/policy") for number in (1, 2, 2, 4, 4)]
    assert leads == [Path("/a/model"), *policies]
    assert best.resolve() == (config.folder / "round-04" / "policy").resolve()


def _bests(config: RunConfig) -> list[Path]:
    found: list[Path] = []
    walk(config, lambda stage: stage.finished(), decided=lambda _, best: found.append(best.folder))  # type: ignore[arg-type,return-value]
    return found
