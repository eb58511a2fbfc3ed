"""A fork shares what its origin has finished; a run's last stages can be set aside and made anew."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from data import files, store
from data.errors import BadInput, RunConflict
from pco.config.run import RunConfig
from pco.rounds import walk
from pco.runs import fork, retention, status
from pco.runs.folder import opened
from pco.runs.status import Point, RunState
from pco.specs import StageName, stages_of
from pco.stage import Stage
from tests import builders
from tests.processes import killed_after


@pytest.fixture
def origin(tmp_path: Path) -> RunConfig:
    """A finished run of two rounds."""
    builders.write_prompts(tmp_path, ["train"], ["heldout"])
    config = builders.config(tmp_path, rounds=2)
    builders.played(config)
    return config


def _renamed(config: RunConfig, **settings: object) -> RunConfig:
    return builders.changed(config, run="new", **settings)


def _states(config: RunConfig) -> list[tuple[Point, str]]:
    return [((line.round, line.stage), line.state) for line in RunState(config).stages]


def _done(config: RunConfig) -> list[Point]:
    return [point for point, state in _states(config) if state == "done"]


def _folder(config: RunConfig, number: int, name: StageName) -> Path:
    return Stage(name, number, config, {}).folder


def test_a_fork_with_the_same_settings_shares_everything_and_copies_nothing(origin: RunConfig) -> None:
    new = _renamed(origin)
    made = fork.fork(origin, new, None)
    assert [(stage.round, stage.name) for stage in made.shared] == status.points(origin)
    assert made.differing == []
    assert RunState(new).is_finished
    for path in new.folder.rglob("*"):
        if path.is_file() and path.parent.name != "new" and path.name != store.ORIGIN:
            assert path.samefile(origin.folder / path.relative_to(new.folder)), path


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        ({"generate__n": 9}, (1, "generate")),
        ({"pair__min_margin": 0.5}, (1, "pair")),
        ({"train__learning_rate": 0.5}, (1, "train")),
        ({"gate__guards__length__max_ratio": 2.5}, (1, "decide")),
        ({"rounds": 3}, (3, "generate")),
    ],
)
def test_without_a_point_all_that_is_still_valid_is_shared(
    origin: RunConfig, settings: dict[str, object], first: Point
) -> None:
    new = _renamed(origin, **settings)
    fork.fork(origin, new, None)
    every = status.points(new)
    assert _done(new) == every[: every.index(first)]
    assert not _folder(new, *first).exists()


def test_from_a_point_on_settings_change_and_what_lies_before_is_taken_as_it_is(origin: RunConfig) -> None:
    new = _renamed(origin, train__learning_rate=0.5)
    made = fork.fork(origin, new, (2, "train"))
    assert made.differing == ["round 1/2 · train: train.learning_rate was 5e-05, is 0.5"]
    every = status.points(new)
    assert _done(new) == every[: every.index((2, "train"))]
    assert RunState(new).to_do == "`pco resume new` would run, in round 2: train, evaluate, decide."
    (line,) = [line for line in RunState(new).stages if (line.round, line.stage) == (1, "train")]
    assert line.note == "from test"


def test_a_fork_goes_on_to_what_a_run_of_its_own_settings_makes_from_there(origin: RunConfig) -> None:
    new = _renamed(origin, rounds=3)
    fork.fork(origin, new, None)
    builders.played(new)  # finds what is shared, or it would fail to make the policy's folder again
    alone = builders.changed(origin, run="alone", rounds=3)
    builders.played(alone)
    for number, name in status.points(new):
        ours, theirs = (store.read_manifest(_folder(config, number, name)) for config in (new, alone))
        assert ours and theirs
        assert ours.fingerprint == theirs.fingerprint


def test_origin_and_fork_stand_on_their_own(origin: RunConfig) -> None:
    new = _renamed(origin)
    fork.fork(origin, new, None)
    shutil.rmtree(origin.folder)
    assert RunState(new).is_finished
    assert (new.folder / "round-01/policy/model.safetensors").read_text()


def test_the_digest_of_a_shared_policy_is_that_of_its_origin(origin: RunConfig) -> None:
    new = _renamed(origin)
    fork.fork(origin, new, None)
    ours, theirs = (files.folder_digest(config.folder / "round-01/policy") for config in (new, origin))
    assert ours == theirs


def test_a_fork_into_a_run_that_exists_is_refused(origin: RunConfig) -> None:
    before = _states(origin)
    with pytest.raises(RunConflict, match="exists"):
        fork.fork(origin, origin, None)
    assert _states(origin) == before


def test_a_fork_after_what_is_not_finished_is_refused_and_leaves_nothing(tmp_path: Path, origin: RunConfig) -> None:
    shutil.rmtree(_folder(origin, 1, "pair"))
    new = _renamed(origin)
    with pytest.raises(BadInput, match=r"round-01/pairs: not finished"):
        fork.fork(origin, new, (2, "train"))
    assert not new.folder.exists()


@pytest.mark.parametrize("at", [(3, "train"), (0, "train"), (1, "refer"), (1, "prepare")])
def test_a_point_that_the_run_has_not_is_refused(origin: RunConfig, at: Point) -> None:
    with pytest.raises(BadInput, match="has no stage"):
        fork.fork(origin, _renamed(origin), at)
    with pytest.raises(BadInput, match="has no stage"):
        fork.set_aside(origin, at)


def test_what_is_set_aside_is_kept_and_made_anew_as_it_was(origin: RunConfig) -> None:
    manifests = {point: store.read_manifest(_folder(origin, *point)) for point in status.points(origin)}
    moved = fork.set_aside(origin, (1, "train"))
    every = status.points(origin)
    assert _done(origin) == every[: every.index((1, "train"))]
    assert origin.folder / "round-01/policy" in moved
    kept = [path.relative_to(origin.folder).parts[2:] for path in origin.folder.glob("set-aside/*/round-*/*")]
    assert sorted(kept) == sorted(folder.relative_to(origin.folder).parts for folder in moved)
    builders.played(origin)
    for point, before in manifests.items():
        again = store.read_manifest(_folder(origin, *point))
        assert before and again
        assert again.fingerprint == before.fingerprint


def test_a_stale_stage_is_refused_by_name_and_goes_on_once_it_is_set_aside(origin: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "heldout.jsonl").write_text('{"prompt": "another"}\n')
    with pytest.raises(RunConflict, match=r"(?s)`heldout`.*--from prepare --round 0"):
        walk(origin, lambda stage: stage.finished() or pytest.fail("not finished"))
    fork.set_aside(origin, (0, "prepare"))
    builders.played(origin)
    assert RunState(origin).is_finished


def test_the_newest_round_that_has_begun_a_stage_is_found(origin: RunConfig) -> None:
    assert fork.newest(origin, "train") == (2, "train")
    fork.set_aside(origin, (2, "generate"))
    assert fork.newest(origin, "train") == (1, "train")
    fork.set_aside(origin, (0, "prepare"))
    with pytest.raises(BadInput, match="no round has begun `train`"):
        fork.newest(origin, "train")


@pytest.mark.parametrize("calls", range(0, 150, 11))
def test_a_fork_killed_at_any_moment_left_a_whole_run_or_none(origin: RunConfig, calls: int) -> None:
    new = _renamed(origin)
    killed = killed_after(calls, lambda: fork.fork(origin, new, None))
    assert not new.folder.exists() or RunState(new).is_finished
    assert killed or RunState(new).is_finished
    if not new.folder.exists():
        fork.fork(origin, new, None)
    assert RunState(new).is_finished
    assert [line.name for line in status.of_all(Path(origin.runs_dir))] == ["new", "test"]


def test_a_fork_beyond_a_refused_round_is_refused_and_says_how_to_go_on(tmp_path: Path) -> None:
    builders.write_prompts(tmp_path, ["train"], ["heldout"])
    config = builders.config(tmp_path, rounds=3)
    builders.played(config, refused=2)
    with pytest.raises(BadInput, match="refused round 2.*--from decide --round 2"):
        fork.fork(config, _renamed(config), (3, "train"))
    assert not _renamed(config).folder.exists()


def test_a_fork_of_a_fork_shares_what_that_had_taken_over(origin: RunConfig) -> None:
    first = _renamed(origin, train__learning_rate=0.5)
    fork.fork(origin, first, (2, "train"))
    builders.played(first)
    second = builders.changed(first, run="second")
    assert len(fork.fork(first, second, None).shared) == len(status.points(first))
    third = builders.changed(first, run="third", train__learning_rate=0.25)
    assert _done_after(fork.fork(first, third, None)) == (1, "pair")


def _done_after(made: fork.Fork) -> Point:
    last = made.shared[-1]
    return last.round, last.name


DPO = {"kind": "dpo"}


@pytest.mark.parametrize(
    ("at", "made"),
    [
        (None, [(1, "refer"), (1, "train"), (1, "evaluate"), (1, "decide")]),
        ((1, "train"), [(1, "refer"), (1, "train"), (1, "evaluate"), (1, "decide")]),
        ((2, "refer"), []),
        ((2, "train"), []),
        ((2, "evaluate"), [(2, "evaluate"), (2, "decide")]),
    ],
)
def test_a_stage_that_only_the_new_settings_need_is_made_where_its_training_is(
    origin: RunConfig, at: Point | None, made: list[Point]
) -> None:
    new = _renamed(origin, train__loss=DPO)
    fork.fork(origin, new, at)
    if at is None or at[0] == 1:
        made = [*made, *[(2, name) for name in stages_of(new, 2)]]
    else:
        made = made or [(2, "refer"), (2, "train"), (2, "evaluate"), (2, "decide")]
    missing = [point for point in status.points(new) if point not in _done(new)]
    assert missing == made
    assert [(stage.round, stage.name) for stage in builders.played(new) if stage.name == "refer"] == [
        point for point in made if point[1] == "refer"
    ]
    assert RunState(new).is_finished


def test_a_fork_that_took_over_a_training_without_a_reference_can_be_forked_and_trained_anew(origin: RunConfig) -> None:
    first = _renamed(origin, train__loss=DPO)
    fork.fork(origin, first, (2, "train"))
    builders.played(first)
    second = builders.changed(first, run="second")
    fork.fork(first, second, None)
    assert RunState(second).is_finished
    fork.set_aside(second, (1, "train"))
    assert (1, "refer") in status.points(second)
    assert (1, "refer") in [(stage.round, stage.name) for stage in builders.played(second)]


def test_test_prompts_that_join_in_a_fork_leave_all_else_shared(origin: RunConfig, tmp_path: Path) -> None:
    builders.write_jsonl(tmp_path / "test.jsonl", [{"prompt": "unseen"}])
    new = _renamed(origin, prompts__test=str(tmp_path / "test.jsonl"))
    assert len(fork.fork(origin, new, None).shared) == len(status.points(origin))
    missing = [point for point in status.points(new) if point not in _done(new)]
    assert missing == [(0, "prepare_test"), (2, "test_start"), (2, "test")]


def test_a_reference_cannot_be_made_from_a_policy_that_was_removed(origin: RunConfig) -> None:
    retention.mark_removed(origin.folder / "round-01/policy")
    shutil.rmtree(origin.folder / "round-01/policy")
    with pytest.raises(BadInput, match="round-01/policy: was removed"):
        fork.fork(origin, _renamed(origin, train__loss=DPO), (2, "refer"))


def test_a_policy_that_is_gone_cannot_be_shared(origin: RunConfig) -> None:
    shutil.rmtree(origin.folder / "round-01/policy")
    with pytest.raises(BadInput, match="round-01/policy: is gone"):
        fork.fork(origin, _renamed(origin), None)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EXDEV])
def test_files_that_cannot_be_linked_are_named_and_leave_nothing(
    origin: RunConfig, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(BadInput, match=r"round-00/prompts/.* shared"):
        fork.fork(origin, _renamed(origin), None)
    assert [path.name for path in Path(origin.runs_dir).iterdir()] == ["test"]


def test_a_folder_that_exists_is_not_forked_into(origin: RunConfig) -> None:
    new = _renamed(origin)
    with opened(new), pytest.raises(RunConflict):
        fork.fork(origin, new, None)
