"""`pco reward train`, killed in its training and started again."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pco.config.reward_training import RewardTraining
from tests.e2e.conftest import ENVIRONMENT
from tests.pco.reward_training.conftest import training_config
from tests.points import Points

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(6000)]


def _start(file: Path, points: Points) -> subprocess.Popen[str]:
    with file.with_name("output.txt").open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "reward", "train", str(file)],
            env={**ENVIRONMENT, **points.environment, "PREFECT_HOME": str(file.parent / "prefect")},
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )


def test_a_killed_reward_training_goes_on_by_the_same_command_and_ends_with_a_table(
    tmp_path: Path, tiny: Path, points: Points
) -> None:
    config: RewardTraining = training_config(tmp_path, tiny, train__checkpoint_steps=1, train__pairs_per_step=2)
    file = tmp_path / "reward.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    hold = points.hold(config.folder / "training/checkpoints/step-00000003.json")
    killed = _start(file, points)

    def check() -> None:
        assert killed.poll() is None, file.with_name("output.txt").read_text()

    hold.wait(check)
    killed.kill()
    killed.wait()
    hold.release()
    assert not (config.folder / "model").exists()

    assert _start(file, points).wait() == 0
    told = file.with_name("output.txt").read_text()
    assert "Reward, length-matched" in told
    assert (config.folder / "model/model.safetensors").exists()
    assert (config.folder / "report.html").exists()
