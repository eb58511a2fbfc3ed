"""A loss of the user's own: refused early when it cannot work, and part of what a training depends on."""

from pathlib import Path
from typing import Any

import pytest
import torch

from data import store
from data.errors import BadInput, CorruptArtifact
from pco.config.run import RunConfig
from pco.config.train import PythonLoss
from pco.doctor import checks
from pco.doctor.inputs import Inputs
from pco.losses import PairLogps
from pco.rounds import walk
from pco.specs import stages_of
from pco.stage import Stage
from pco.training import user_loss
from tests import builders

GOOD = "import torch\ndef loss(pairs): return torch.relu(1 - (pairs.chosen - pairs.rejected))\n"


def written(folder: Path, code: str = GOOD, module: str = "my_loss", **settings: Any) -> PythonLoss:
    (folder / f"{module}.py").write_text(code)
    return PythonLoss(module=module, folder=str(folder), **settings)


def configured(folder: Path, loss: PythonLoss, **settings: Any) -> RunConfig:
    return builders.config(folder, train__loss=loss.model_dump(), **settings)


def pairs_of(rows: int) -> PairLogps:
    return PairLogps(*(torch.full((rows,), value) for value in (-4.0, -9.0, 2.0, 3.0)))


def test_a_loss_that_works_passes_and_is_called_with_log_probabilities_and_token_counts(tmp_path: Path) -> None:
    loss = written(
        tmp_path,
        "def loss(pairs): return pairs.chosen / pairs.chosen_tokens - pairs.rejected / pairs.rejected_tokens",
    )
    user_loss.check(loss)
    assert user_loss.call(loss, pairs_of(2)).tolist() == [1.0, 1.0]


def test_a_loss_may_have_another_name_and_lie_in_a_package_with_a_helper(tmp_path: Path) -> None:
    package = tmp_path / "loss_pack"  # another name than in the tests of rewards: packages stay imported
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "other.py").write_text("SCALE = 2.0")
    (package / "mine.py").write_text("from .other import SCALE\ndef hinge(pairs): return SCALE * -pairs.chosen")
    loss = PythonLoss(module="loss_pack.mine", function="hinge", folder=str(tmp_path))
    user_loss.check(loss)
    assert user_loss.call(loss, pairs_of(1)).tolist() == [8.0]


@pytest.mark.parametrize("reference", ["none", "previous", "start"])
def test_only_a_loss_that_asks_for_a_reference_is_given_one(tmp_path: Path, reference: Any) -> None:
    code = "def loss(pairs): return pairs.chosen - pairs.ref_chosen - (pairs.rejected - pairs.ref_rejected)"
    loss = written(tmp_path, code, reference=reference)
    assert ("refer" in stages_of(configured(tmp_path, loss), 1)) == (reference != "none")
    if reference == "none":
        with pytest.raises(BadInput, match="failed on 4 pairs .TypeError"):
            user_loss.check(loss)
    else:
        user_loss.check(loss)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_module", "could not be imported .*ModuleNotFoundError"),
        ("def loss(:", "could not be imported .*SyntaxError"),
        ("def other(pairs): ...", "has no function `loss`"),
        ("loss = 3", "has no function `loss`"),
        ("def loss(pairs): return 1 / 0", "failed on 4 pairs .ZeroDivisionError"),
        ("def loss(pairs): return 1.0", "one loss per pair; it returned float"),
        ("def loss(pairs): return (pairs.chosen - pairs.rejected).mean()", r"shape \(4,\).*of shape \(\)"),
        ("def loss(pairs): return pairs.chosen[:, None]", r"shape \(4,\).*of shape \(4, 1\)"),
        ("def loss(pairs): return pairs.chosen.long()", "floating point .*int64"),
        ("def loss(pairs): return pairs.chosen / 0", "not all of them finite"),
        ("def loss(pairs): return -pairs.chosen.detach()", "cannot be differentiated"),
        ("def loss(pairs): return (-pairs.chosen).sqrt() + pairs.rejected", "gradient with respect to `chosen`.*inf"),
        ("def loss(pairs): return pairs.chosen - pairs.chosen.mean()", "depends on the pairs beside it"),
    ],
)
def test_a_loss_that_cannot_work_is_refused_before_any_work(tmp_path: Path, code: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        user_loss.check(written(tmp_path, code))


def test_a_module_without_a_python_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no Python file for the module `absent`.*Set train\.loss\.folder"):
        user_loss.check(PythonLoss(module="absent", folder=str(tmp_path)))


def test_the_doctor_looks_at_a_loss_of_the_users_own(tmp_path: Path, tiny: Path) -> None:
    builders.write_prompts(tmp_path, ["a"], ["b"])
    good = builders.config(tmp_path, tiny, train__loss=written(tmp_path).model_dump())
    assert "my_loss:loss" in checks.CHECKS["loss"](Inputs(good))
    (tmp_path / "my_loss.py").write_text("def loss(pairs): return pairs.chosen.sum()")
    with pytest.raises(BadInput, match="my_loss:loss"):
        checks.check(good)


def test_what_a_loss_returns_in_training_is_held_to_its_shape(tmp_path: Path) -> None:
    loss = written(tmp_path, "def loss(pairs): return pairs.chosen[:3]")
    assert user_loss.call(loss, pairs_of(3)).shape == (3,)
    with pytest.raises(BadInput, match=r"shape \(4,\), one loss per pair; .*shape \(3,\)"):
        user_loss.call(loss, pairs_of(4))


def test_the_file_of_a_loss_decides_the_training_and_its_place_does_not(tmp_path: Path) -> None:
    def training(folder: Path, code: str) -> Stage:
        folder.mkdir()
        config = configured(tmp_path, written(folder, code))
        return Stage("train", 1, config, user_loss.inputs(Stage("train", 1, config, {})))

    here, moved = training(tmp_path / "here", GOOD), training(tmp_path / "moved", GOOD)
    other = training(tmp_path / "other", GOOD + "# another one")
    assert here.fingerprint == moved.fingerprint
    assert here.fingerprint != other.fingerprint


def test_a_loss_whose_file_changed_since_the_stage_was_started_is_refused(tmp_path: Path) -> None:
    config = configured(tmp_path, written(tmp_path))
    stage = Stage("train", 1, config, user_loss.inputs(Stage("train", 1, config, {})))
    user_loss.check_unchanged(stage)
    written(tmp_path, GOOD + "# changed")
    with pytest.raises(CorruptArtifact, match=r"my_loss\.py: changed while the run was at work"):
        user_loss.check_unchanged(stage)


def test_a_loss_of_this_package_adds_no_input(tmp_path: Path) -> None:
    stage = Stage("train", 1, builders.config(tmp_path), {})
    assert user_loss.inputs(stage) == {}
    user_loss.check_unchanged(stage)


def test_only_training_depends_on_the_losss_file_and_a_run_without_it_can_be_looked_at(tmp_path: Path) -> None:
    builders.write_prompts(tmp_path, ["a"], ["b"])
    # Of a name of its own: the folders of other tests' modules are searched, too.
    config = configured(tmp_path, written(tmp_path, module="moved_loss"), rounds=2)
    builders.played(config)

    def inputs() -> dict[tuple[int, str], dict[str, str]]:
        stages: list[Stage] = []

        def look(stage: Stage) -> Any:
            stages.append(stage)
            return store.read_manifest(stage.folder)

        walk(config, look)
        return {
            (stage.round, stage.name): {name: artifact.fingerprint for name, artifact in stage.inputs.items()}
            for stage in stages
        }

    before = inputs()
    (tmp_path / "moved_loss.py").unlink()
    assert inputs() == before
    written(tmp_path, GOOD + "# another one", module="moved_loss")
    after = inputs()
    assert {point for point in before if before[point] != after[point]} == {(1, "train"), (2, "train")}
