"""Old policies make room; what a run still needs stays."""

from pathlib import Path

import pytest

from data.errors import BadInput, CorruptArtifact
from pco.config.run import RunConfig
from pco.runs import fork, policy, retention, verify
from pco.runs.status import RunState
from pco.stage import Artifact, Stage
from tests import builders


def run_of(tmp_path: Path, **settings: object) -> RunConfig:
    builders.write_prompts(tmp_path, ["a"], ["b"])
    return builders.config(tmp_path, rounds=5, gate={"otherwise": "roll_back"}, **settings)


def present(config: RunConfig) -> list[int]:
    return [number for number in range(1, 6) if Stage("train", number, config).model_folder.is_dir()]


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [1, 2, 3, 4, 5]),
        ({"keep_last": 1}, [3, 5]),
        ({"keep_last": 2}, [3, 4, 5]),
        ({"keep_last": 1, "keep_best": 2}, [1, 3, 5]),
        ({"keep_last": 9}, [1, 2, 3, 4, 5]),
    ],
)
def test_the_last_policies_and_the_best_ones_are_kept(
    tmp_path: Path, settings: dict[str, object], kept: list[int]
) -> None:
    config = run_of(tmp_path, **settings)
    builders.played(config, refused={2, 4, 5})
    removed = retention.prune(config)
    assert present(config) == kept
    assert [int(folder.parent.name[-2:]) for folder in removed] == [i for i in range(1, 6) if i not in kept]
    assert retention.prune(config) == []


def test_a_removed_policy_is_neither_damage_nor_work_to_do(tmp_path: Path) -> None:
    config = run_of(tmp_path, keep_last=1)
    builders.played(config)
    before = [line.state for line in RunState(config).stages]
    retention.prune(config)
    assert verify.damage(config) == []
    assert RunState(config).is_finished and [line.state for line in RunState(config).stages] == before


def test_a_run_that_lost_a_policy_on_purpose_can_be_forked(tmp_path: Path) -> None:
    config = run_of(tmp_path, keep_last=1)
    builders.played(config)
    retention.prune(config)
    new = builders.changed(config, run="new")
    fork.fork(config, new, (5, "decide"))
    assert present(new) == [5] and verify.damage(new) == []


def test_nothing_is_moved_or_shared_for_a_round_whose_beginning_was_removed(tmp_path: Path) -> None:
    config = run_of(tmp_path, keep_last=1)
    builders.played(config)
    retention.prune(config)
    before = sorted(config.folder.rglob("*"))
    for begin in (
        lambda: fork.set_aside(config, (4, "train")),
        lambda: fork.fork(config, builders.changed(config, run="new"), (4, "train")),
    ):
        with pytest.raises(BadInput, match=r"round-03/policy: .*removed.* `train` of round 4"):
            begin()
    assert sorted(config.folder.rglob("*")) == before
    fork.set_aside(config, (5, "decide"))


def test_a_stage_that_needs_a_removed_policy_says_how_to_have_it_again(tmp_path: Path) -> None:
    config = run_of(tmp_path, keep_last=1)
    builders.played(config)
    retention.prune(config)
    needed = Artifact(Stage("train", 2, config).model_folder, "digest")
    with pytest.raises(CorruptArtifact, match=r"removed.*`keep_last`.*pco resume test --from train"):
        policy.verified(builders.stage("generate", config, {"policy": needed}))


def test_a_folder_is_never_half_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_of(tmp_path, keep_last=1)
    builders.played(config)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        retention.prune(config)
    monkeypatch.undo()
    assert verify.damage(config) == []
    retention.prune(config)
    assert present(config) == [5]
    assert not list(config.folder.rglob(".policy.old"))
