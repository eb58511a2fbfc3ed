"""The command line, as typed."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from flows.cli import app
from tests import builders

runner = CliRunner(env={"COLUMNS": "200"})


@pytest.fixture
def config_file(tmp_path: Path, tiny: Path) -> Path:
    builders.write_prompts(tmp_path, train=["the river", "a small town"], heldout=["the old bridge"])
    raw = builders.raw_config(tmp_path, tiny) | {"generate": {"max_tokens": 8}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_help_of_every_command_explains_it() -> None:
    for command in ("run", "status", "recover", "report", "show", "model"):
        result = runner.invoke(app, [command, "--help"])
        assert result.exit_code == 0
        assert len(result.output) > 300


def test_a_dry_run_checks_and_starts_nothing(config_file: Path) -> None:
    result = runner.invoke(app, ["run", str(config_file), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "2 training prompts, 1 held-out" in result.output
    assert "2 round(s)" in result.output
    assert not (config_file.parent / "runs").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("rouns=2", "Did you mean `rounds`?"),
        ("train.loss.k=100000", "contrast candidates need a vocabulary"),
        ("policy.model=./nowhere", "no such folder"),
        ("prompts.train=nowhere.jsonl", "no such file"),
        ("generate.max_tokens=5000", "does not fit"),
        ("generate.n=1", "generate.n"),
        ("rounds=two", "rounds: Input should be a valid integer"),
        ("rounds", "expected key=value"),
        ("runs_dir=/dev/null/runs", "cannot be written"),
    ],
)
def test_bad_input_ends_with_status_2_and_one_clear_message(config_file: Path, change: str, told: str) -> None:
    result = runner.invoke(app, ["run", str(config_file), "--dry-run", "--set", change])
    assert result.exit_code == 2
    assert told in result.output
    assert "Traceback" not in result.output


def test_a_missing_config_file_is_named() -> None:
    result = runner.invoke(app, ["run", "nowhere.yaml"])
    assert result.exit_code == 2
    assert "nowhere.yaml: no such config file" in result.output


def test_status_of_an_unknown_run_lists_the_known_ones(tmp_path: Path) -> None:
    config = builders.config(tmp_path)
    config.folder.mkdir(parents=True)
    (config.folder / "config.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    result = runner.invoke(app, ["status", "other", "--runs-dir", config.runs_dir])
    assert result.exit_code == 2
    assert "test" in result.output
    listed = runner.invoke(app, ["status", "--runs-dir", config.runs_dir])
    assert "unfinished" in listed.output


def test_an_unknown_table_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    result = runner.invoke(app, ["show", "test", "pears", "--runs-dir", str(tmp_path)])
    assert result.exit_code == 2
    assert "candidates" in result.output


def test_a_model_folder_that_holds_something_is_not_overwritten(tiny: Path) -> None:
    result = runner.invoke(app, ["model", str(tiny)])
    assert result.exit_code == 2
    assert "not empty" in result.output
