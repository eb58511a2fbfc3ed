"""The test set is looked at once, when the run has ended, and every look is counted."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import BadInput, CorruptArtifact, RunConflict
from pco.config.run import RunConfig
from pco.evaluation import looks
from pco.runs import final_test, fork, status
from pco.runs.folder import check_same, opened, read_config
from pco.runs.status import RunState
from pco.specs import TESTS
from pco.stage import Stage
from tests import builders

ENDED = ("test_start", "test")


def run_of(folder: Path, *, test: bool = True, rounds: int = 3, otherwise: str = "roll_back") -> RunConfig:
    builders.write_prompts(folder, ["train"], ["heldout"])
    path = builders.write_jsonl(folder / "test.jsonl", [{"prompt": "test"}])
    settings = {"prompts__test": str(path)} if test else {}
    return builders.config(folder, rounds=rounds, gate={"otherwise": otherwise}, **settings)


def named(stages: list[Stage]) -> list[tuple[int, str]]:
    return [(stage.round, stage.name) for stage in stages]


def again(config: RunConfig, **settings: object) -> RunConfig:
    return builders.changed(config, **settings)


@settings(max_examples=20)  # each plays two runs on disk
@given(refused=st.sets(st.integers(1, 4)), otherwise=st.sampled_from(["stop", "roll_back", "continue_anyway"]))
def test_test_prompts_change_nothing_of_what_a_run_makes_before_them(
    tmp_path_factory: pytest.TempPathFactory, refused: set[int], otherwise: str
) -> None:
    folder = tmp_path_factory.mktemp("run")
    configs = [run_of(folder, test=test, rounds=4, otherwise=otherwise) for test in (False, True)]
    configs[1] = again(configs[1], run="tested")
    without, tested = (builders.played(config, refused=refused) for config in configs)
    extra = {"prepare_test", *TESTS}
    assert [stage.fingerprint for stage in without] == [s.fingerprint for s in tested if s.name not in extra]
    assert named(without) == [point for point in named(tested) if point[1] not in extra]


@pytest.mark.parametrize(("refused", "round_of_best"), [((), 3), ((3,), 2), ((2, 3), 1)])
def test_the_starting_and_the_best_policy_are_tested_when_the_run_has_ended(
    tmp_path: Path, refused: tuple[int, ...], round_of_best: int
) -> None:
    config = run_of(tmp_path)
    start, best = builders.played(config, refused=refused)[-2:]
    assert named([start, best]) == [(3, "test_start"), (3, "test")]
    assert start.inputs["policy"].fingerprint == "the starting policy"
    assert best.inputs["policy"].folder == builders.stage("train", config, number=round_of_best).model_folder
    assert best.inputs["start"].folder == start.folder
    assert RunState(config).is_finished and final_test.tested_round(config) == round_of_best
    assert final_test.looks_at(config) == 1


def test_a_run_that_the_gate_stops_is_tested_where_it_stopped(tmp_path: Path) -> None:
    config = run_of(tmp_path, otherwise="stop")
    assert named(builders.played(config, refused=2))[-2:] == [(2, name) for name in ENDED]
    assert status.points(config)[-2:] == [(2, name) for name in ENDED]


def test_no_test_is_needed_where_the_start_is_the_best_policy(tmp_path: Path) -> None:
    config = run_of(tmp_path)
    stages = builders.played(config, refused={1, 2, 3})
    assert not {stage.name for stage in stages} & set(TESTS)
    assert RunState(config).is_finished and not final_test.is_needed(config)
    assert not {name for _, name in status.points(config)} & set(TESTS)
    assert final_test.looks_at(config) == 0


def test_a_run_says_that_the_test_is_to_come(tmp_path: Path) -> None:
    config = run_of(tmp_path)
    builders.played(config, (2, "score"))
    expected = "in round 2: score, pair, train, evaluate, decide, then 1 more round and the test."
    assert RunState(config).to_do.endswith(expected)
    builders.played(config, (3, "test"))
    assert RunState(config).to_do == "`pco resume test` would run, in round 3: test."


def test_another_look_is_refused_unless_asked_for_and_counted(tmp_path: Path) -> None:
    config = run_of(tmp_path, rounds=2)
    builders.played(config)
    longer = again(config, rounds=3)
    assert not {stage.name for stage in builders.played(longer) if stage.round == 3} & set(TESTS)
    assert RunState(longer).is_finished  # it does not look by itself
    lines = {(line.round, line.stage): line for line in RunState(longer).stages}
    assert lines[2, "test"].state == "done" and lines[2, "test"].note == "an earlier look at the test set"
    with pytest.raises(BadInput, match=r"looked at once already.*--again.*2 times"):
        final_test.walk(longer, builders.pretended)
    final_test.walk(longer, builders.pretended, again=True)
    assert final_test.looks_at(longer) == 2
    assert final_test.tested_round(longer) == 3
    # Both stay: a test is never overwritten.
    assert [point for point in status.points(longer) if point[1] == "test"] == [(2, "test"), (3, "test")]


def test_a_look_that_was_killed_goes_on_without_being_asked_for_again(tmp_path: Path) -> None:
    config = run_of(tmp_path, rounds=2)
    builders.played(config)
    longer = again(config, rounds=3)
    builders.played(longer)

    def killed(stage: Stage) -> object:
        if stage.name == "test":
            looks.record(stage)
            raise KeyboardInterrupt
        return builders.pretended(stage)

    with pytest.raises(KeyboardInterrupt):
        final_test.walk(longer, killed, again=True)  # type: ignore[arg-type]
    assert named(builders.played(longer))[-1] == (3, "test")
    assert final_test.looks_at(longer) == 2


def test_rounds_that_bring_no_better_policy_need_no_other_look(tmp_path: Path) -> None:
    config = run_of(tmp_path, rounds=1)
    builders.played(config)
    longer = again(config, rounds=3)
    assert named(builders.played(longer, refused={2, 3}))[-1] == (1, "test")
    assert final_test.looks_at(longer) == 1 and final_test.tested_round(longer) == 1


def test_what_was_seen_is_known_in_forks_and_after_going_back(tmp_path: Path) -> None:
    config = run_of(tmp_path, rounds=2)
    builders.played(config)
    forked = again(config, run="forked", train__learning_rate=1e-6)
    fork.fork(config, forked, None)
    assert not {stage.name for stage in builders.played(forked)} & set(TESTS)
    assert final_test.looks_at(forked) == 1
    same = again(config, run="same")
    assert named([*fork.fork(config, same, None).shared])[-1] == (2, "test")
    assert named(builders.played(same))[-1] == (2, "test") and final_test.looks_at(same) == 1
    fork.set_aside(config, (1, "generate"))
    assert final_test.looks_at(config) == 1
    # The same policies are made again, and give the same result.
    assert named(builders.played(config))[-1] == (2, "test") and final_test.looks_at(config) == 1


def test_a_test_set_may_join_a_run_and_change_until_it_was_looked_at(tmp_path: Path) -> None:
    config = run_of(tmp_path, test=False, rounds=2)
    builders.played(config)
    with pytest.raises(BadInput, match="has no test set"):
        final_test.check(config)
    joined = final_test.with_prompts(config, tmp_path / "test.jsonl")
    assert RunState(joined).to_do == "`pco resume test` would run, in round 0: prepare_test, then the test."
    assert [line.state for line in RunState(joined).stages if line.stage == "decide"] == ["done", "done"]
    other = builders.write_jsonl(tmp_path / "other.jsonl", [{"prompt": "other"}])
    with opened(final_test.with_prompts(config, other)), opened(run_of(tmp_path / "elsewhere")):
        pass
    with opened(joined):
        final_test.walk(joined, lambda stage: stage.finished() or builders.pretended(stage))
    assert final_test.looks_at(read_config(config.folder)) == 1
    with pytest.raises(RunConflict, match=r"prompts\.test"):
        check_same(final_test.with_prompts(config, other))


def test_a_run_that_goes_on_is_not_tested_yet(tmp_path: Path) -> None:
    config = run_of(tmp_path)
    builders.played(config, (2, "train"))
    with pytest.raises(BadInput, match=r"has not ended: 1 of 3 rounds.*rounds=N"):
        final_test.walk(config, builders.pretended)


def test_a_line_that_tells_of_no_look_is_not_passed_over(tmp_path: Path) -> None:
    config = run_of(tmp_path)
    builders.played(config)
    path = config.folder / looks.FILE
    whole = path.read_text()
    path.write_text(whole[:-9])
    with pytest.raises(CorruptArtifact, match=r"test-looks.jsonl, line 1"):
        looks.read(config.folder)
    path.write_text(whole.rstrip("\n"))  # its end was lost
    test = builders.played(config)[-1]
    later = Stage(test.name, 9, config, test.inputs)
    looks.record(later)
    looks.record(later)
    assert [look.round for look in looks.read(config.folder)] == [3, 9]
