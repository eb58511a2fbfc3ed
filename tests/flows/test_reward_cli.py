"""`pco reward`, as typed."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from flows.cli import app
from pco.runs.folder import opened
from tests.pco.reward_training.conftest import training_config

runner = CliRunner(env={"COLUMNS": "200"})


@pytest.fixture
def config_file(tmp_path: Path, tiny: Path) -> Path:
    path = tmp_path / "reward.yaml"
    path.write_text(yaml.safe_dump(training_config(tmp_path, tiny).model_dump(mode="json")))
    return path


def test_a_dry_run_tells_both_sides_and_starts_nothing(config_file: Path) -> None:
    result = runner.invoke(app, ["reward", "train", str(config_file), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "pairs of" in result.output
    assert "prompts held out" in result.output
    assert not (config_file.parent / "runs").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("train.lenght_penalty=1", "Did you mean `length_penalty`?"),
        ("model=./nowhere", "no such folder"),
        ("preferences=nowhere.jsonl", "no such file"),
        ("train.margin_scale=1", "have no `margin`"),
    ],
)
def test_bad_input_ends_with_status_2_and_one_clear_message(config_file: Path, change: str, told: str) -> None:
    result = runner.invoke(app, ["reward", "train", str(config_file), "--dry-run", "--set", change])
    assert result.exit_code == 2
    assert told in result.output
    assert "Traceback" not in result.output


def test_pco_status_lists_a_reward_training_among_the_runs_and_says_how_to_go_on_with_it(
    tmp_path: Path, tiny: Path
) -> None:
    config = training_config(tmp_path, tiny)
    with opened(config):
        pass
    listed = runner.invoke(app, ["status", "--runs-dir", config.runs_dir])
    assert "reward training, unfinished" in listed.output
    one = runner.invoke(app, ["status", "reward", "--runs-dir", config.runs_dir])
    assert one.exit_code == 2
    assert "pco reward train" in one.output
