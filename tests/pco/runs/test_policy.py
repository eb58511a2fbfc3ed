"""A stage works with exactly the policy that it was given."""

import shutil
from pathlib import Path

import pytest

from data.errors import CorruptArtifact
from pco.execution import launcher
from pco.runs import policy
from pco.specs import StageName
from pco.stage import Artifact, Stage
from tests import builders


# Every stage that loads a policy; the doctor's canary and a run go through these.
@pytest.mark.parametrize("name", ["generate", "evaluate", "refer", "train", "pair"])
def test_no_stage_loads_a_policy_that_is_not_the_one_it_was_given(
    tmp_path: Path, tiny: Path, name: StageName, one_thread: None
) -> None:
    given = {"policy": Artifact(tiny, "the digest of another"), "pairs": builders.PRETEND}
    config = builders.config(tmp_path, tiny, pair__strategy="reference_worst")
    with pytest.raises(CorruptArtifact, match="digest of another"):
        launcher.run(builders.stage(name, config, given))


@pytest.fixture
def stage(tmp_path: Path, tiny: Path) -> Stage:
    copy = builders.model(shutil.copytree(tiny, tmp_path / "policy"))
    return builders.stage("generate", builders.config(tmp_path), {"policy": copy})


def test_an_untouched_policy_is_the_one_it_was(stage: Stage) -> None:
    assert policy.verified(stage) == stage.inputs["policy"]


def test_altered_weights_are_refused_by_name(stage: Stage) -> None:
    weights = stage.inputs["policy"].folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CorruptArtifact, match="policy: .*changed"):
        policy.verified(stage)


def test_a_policy_that_is_gone_is_refused_by_name(stage: Stage) -> None:
    shutil.rmtree(stage.inputs["policy"].folder)
    with pytest.raises(CorruptArtifact, match="policy: .*gone"):
        policy.verified(stage)
