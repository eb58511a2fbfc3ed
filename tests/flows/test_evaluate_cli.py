"""Policies held against each other from the command line: real stages, a pretended engine."""

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from data import store
from flows.cli import app
from pco.config.run import RunConfig
from pco.execution import launcher
from pco.runs import folder as run_folder
from pco.runs import standalone
from pco.stage import Stage, round_folder
from pco.stages import evaluate
from tests import builders
from tests.fake_sampler import FakeSampler
from tests.pco.report.report_runs import make_run

runner = CliRunner(env={"COLUMNS": "200"})


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Stages run in this process, and a later engine writes more tokens; the names of the stages that ran."""
    ran: list[str] = []

    def run(stage: Stage, **_: Any) -> store.Manifest:
        done = stage.finished()
        if done is None:
            ran.append(stage.name)
            import_module(f"pco.stages.{stage.name}").run(stage)
        manifest = stage.finished()
        assert manifest is not None
        return manifest

    monkeypatch.setattr(launcher, "run", run)
    monkeypatch.setattr(evaluate, "Sampler", lambda *_: FakeSampler(1 + ran.count("evaluate")))
    return ran


@pytest.fixture
def config_file(tmp_path: Path, tiny: Path) -> Path:
    builders.write_prompts(tmp_path, ["the river"], ["the old bridge", "a grey heron"])
    raw = builders.raw_config(tmp_path, tiny) | {"reward": {"kind": "length", "max_tokens": 1}}
    raw |= {"policy": {"model": str(tiny), "prompt_format": "raw"}, "generate": {"max_tokens": 8}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture
def finished(tmp_path: Path, tiny: Path) -> RunConfig:
    """A fabricated run whose last policy is the tiny model."""
    config = make_run(builders.config(tmp_path, tiny))
    run_folder.write_config(config, config.folder)
    (round_folder(config, 2) / "policy").symlink_to(tiny)
    return config


def told(*arguments: str | Path, status: int = 0) -> str:
    result = runner.invoke(app, list(map(str, arguments)))
    assert result.exit_code == status, result.output
    return result.output


def test_policies_are_evaluated_on_other_prompts_once_and_held_against_the_first(
    launched: list[str], config_file: Path, finished: RunConfig, tiny: Path, tmp_path: Path
) -> None:
    other = builders.write_jsonl(tmp_path / "other.jsonl", [{"prompt": f"the tide {i}"} for i in range(3)])
    command = ("evaluate", tiny, f"{finished.folder}:2", "--config", config_file, "--prompts", other)
    first = told(*command, "--out", tmp_path / "out")
    assert launched == ["prepare", "evaluate"] * 2
    assert "test:2 less" in first
    assert "−1.0000 (−1.0000 to −1.0000)" in first  # a token longer than the first's
    again = told(*command, "--out", tmp_path / "out")
    assert again.partition("Means")[2] == first.partition("Means")[2]
    assert launched == ["prepare", "evaluate"] * 2
    folders = sorted((tmp_path / "out").iterdir())
    assert len(folders) == 2
    for folder in folders:
        assert "9 rows" in told("show", folder, "candidates", "--limit", "1")
        assert "the tide" in told("show", folder, "prompts")


def test_another_reward_is_another_evaluation_and_disturbs_none(
    launched: list[str], config_file: Path, tiny: Path, tmp_path: Path
) -> None:
    command = ("evaluate", tiny, "--config", config_file, "--out", tmp_path / "out")
    told(*command)
    told(*command, "--set", "reward.max_tokens=2")
    assert launched == ["prepare", "evaluate"] * 2
    told(*command, "--set", "engine.kv_cache_gib=0.5", status=0)
    assert launched == ["prepare", "evaluate"] * 2


def test_the_settings_are_by_default_those_of_the_first_policy_s_run(finished: RunConfig, tmp_path: Path) -> None:
    settings = standalone.settings(None, [f"{finished.folder}:2", "some/model"], tmp_path, ["seed=5"])
    assert settings == finished.model_copy(update={"seed": 5})


def test_a_model_of_no_run_needs_a_config() -> None:
    assert "config: there is none, and some/model is not RUN:ROUND" in told("evaluate", "some/model", status=2)


def test_seed_preferences_of_a_config_are_no_fault(tiny: Path, tmp_path: Path) -> None:
    settings = builders.config(tmp_path, prompts__preferences="pairs.jsonl", replay__rounds=3)
    plan = standalone.planned(settings, str(tiny), None, tmp_path)
    assert plan.prompts.preferences == str(Path("pairs.jsonl").resolve())


def test_prompts_that_were_trained_on_are_refused(launched: list[str], config_file: Path, tmp_path: Path) -> None:
    train = tmp_path / "train.jsonl"
    message = told("evaluate", "any", "--config", config_file, "--prompts", train, "--out", tmp_path, status=2)
    assert "is also trained on" in message


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        (["a", "a"], "names one twice"),
        (["{run}:2", "{run}/round-02/policy"], "names one twice"),
        (["nowhere:1"], "no run here"),
        (["{run}:1"], "no policy of that round"),
        (["{run}:one"], "expected RUN:ROUND"),
        (["./nowhere"], "no such folder, and not a hub id either"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(
    launched: list[str], config_file: Path, finished: RunConfig, tmp_path: Path, policies: list[str], message: str
) -> None:
    named = [name.format(run=finished.folder) for name in policies]
    assert message in told("evaluate", *named, "--config", config_file, "--out", tmp_path / "out", status=2)
    assert "evaluate" not in launched


def test_round_0_is_the_starting_policy(tmp_path: Path, tiny: Path) -> None:
    config = builders.config(tmp_path, tiny)
    run_folder.write_config(config, config.folder)
    assert standalone.model_of(f"{config.folder}:0", tmp_path) == str(tiny)
    assert standalone.model_of("some/model", tmp_path) == "some/model"


def test_an_export_is_what_the_public_evaluator_reads(finished: RunConfig, tmp_path: Path) -> None:
    out = tmp_path / "model_outputs.json"
    assert "4 completions" in told("export", f"{finished.folder}:2", "--out", out)
    outputs = json.loads(out.read_text(encoding="utf-8"))
    # As the user wrote the prompts, not as they were rendered; greedy completions alone, one per prompt.
    assert [row["instruction"].strip() for row in outputs] == [f"heldout prompt {i}" for i in range(4)]
    assert {row["generator"] for row in outputs} == {"test:2"}
    assert all(
        isinstance(row["output"], str) and row.keys() == {"instruction", "output", "generator"} for row in outputs
    )
    assert "is there already" in told("export", f"{finished.folder}:2", "--out", out, status=2)


def refused(*words: str) -> str:
    result = runner.invoke(app, [*words])
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


def test_a_test_is_refused_where_there_is_nothing_to_look_at_or_it_was_looked_at(tmp_path: Path) -> None:
    builders.write_prompts(tmp_path, ["a"], ["b"])
    test = builders.write_jsonl(tmp_path / "test.jsonl", [{"prompt": "c"}])
    config = builders.config(tmp_path, rounds=1)
    builders.played(config, (1, "train"))
    assert "has no test set. Name one" in refused("test", str(config.folder))
    words = ("test", str(config.folder), "--prompts", str(test))
    assert "has not ended: 0 of 1 rounds are decided" in refused(*words)
    builders.played(builders.changed(config, prompts__test=str(test)))
    longer = builders.changed(config, prompts__test=str(test), rounds=2)
    builders.played(longer)
    assert "looked at once already" in refused("test", str(config.folder))
    other = builders.write_jsonl(tmp_path / "other.jsonl", [{"prompt": "d"}])
    assert "prompts.test" in refused("test", str(config.folder), "--prompts", str(other), "--again")
