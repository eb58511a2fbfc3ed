"""pco from Python without an engine: what is loaded, which stages are run, what a run on disk says."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import pco
from data import store
from data.errors import BadInput, PCOError, RunConflict
from pco.config.run import RunConfig
from pco.progress import Progress
from pco.runs.folder import opened, report_path
from pco.stage import Stage
from tests import builders


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    builders.write_prompts(tmp_path, ["train"], ["heldout"])
    return builders.config(tmp_path)


@dataclass
class Recording:
    """An executor that finishes each stage at once, with nothing in its tables."""

    ran: list[str] = field(default_factory=list)

    def run(
        self,
        stage: Stage[Any],
        *,
        on_progress: Callable[[Progress], None] = lambda _: None,
        on_log: Callable[[str], None] = lambda _: None,
    ) -> store.Manifest:
        done = stage.finished()
        if done is not None:
            return done
        self.ran.append(stage.title)
        on_progress(Progress(1, 1, "rows"))
        on_log(f"log of {stage.name}")
        return builders.pretended(stage)


@pytest.mark.process
def test_the_import_alone_loads_nothing_heavy_and_the_names_are_there() -> None:
    code = (
        "import sys, pco; heavy = {'torch', 'vllm', 'prefect', 'pydantic', 'pyarrow'};"
        "print(sorted(heavy & set(sys.modules))); print(all(hasattr(pco, name) for name in pco.__all__))"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert told == "[]\nTrue\n"
    with pytest.raises(AttributeError, match="no attribute 'walk'"):
        _ = pco.walk


def test_a_config_is_loaded_from_a_file_from_the_package_and_from_a_mapping(tmp_path: Path) -> None:
    packaged = pco.load("package:presets/quickstart.yaml", ["rounds=7"])
    assert packaged.rounds == 7
    assert Path(packaged.prompts.train).is_file()
    mapping = builders.raw_config(tmp_path)
    assert pco.load(mapping, ["run=other"]).run == "other"
    assert mapping["run"] == "test"
    with pytest.raises(BadInput, match=r"rouns: unknown key.*`rounds`"):
        pco.load({**mapping, "rouns": 1})


def test_a_run_is_run_resumed_and_points_to_its_best_policy(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pco.report.write", lambda config: report_path(config).touch())  # of tables without rows
    seen: list[str] = []

    def on_progress(stage: Stage, _: Progress) -> None:
        seen.append(stage.title)

    executor = Recording()
    run = pco.run(config, executor=executor, on_progress=on_progress, on_log=seen.append)
    assert executor.ran[0] == "start · prepare"
    assert executor.ran[-1] == "round 2/2 · decide"
    assert seen[:2] == ["start · prepare", "log of prepare"]
    assert run.promoted == [True, True]
    assert run.reasons == ["round 1 yes", "round 2 yes"]
    assert run.best == config.folder / "round-02" / "policy"
    assert run.report == config.folder / "report.html"
    again = Recording()
    assert pco.run(config, executor=again).best == run.best
    assert again.ran == []


def test_a_run_that_another_process_writes_to_is_not_run(config: RunConfig) -> None:
    with opened(config), pytest.raises(RunConflict, match=r"being written by process \d+"):
        pco.run(config, executor=Recording())


def test_a_run_is_found_by_name_and_by_folder(config: RunConfig) -> None:
    builders.played(config, (1, "train"))
    for run in (pco.find("test", runs_dir=config.runs_dir), pco.find(config.folder)):
        assert run.config == config
        assert (run.promoted, run.best, run.report) == ([], None, None)
    with pytest.raises(BadInput, match="no run here. Runs in .*: test"):
        pco.find("other", runs_dir=config.runs_dir)


def test_a_table_is_read_of_the_round_and_of_the_stage_that_is_named(config: RunConfig) -> None:
    builders.played(config, (1, "score"))
    generate, evaluate = (builders.stage(name, config) for name in ("generate", "evaluate"))
    builders.finished(generate.folder, {"candidates": [builders.candidate_row("p", sample) for sample in (0, 1)]})
    builders.finished(evaluate.folder, {"candidates": [builders.candidate_row("q", mode="greedy")]})
    run = pco.find(config.folder)
    assert run.table("candidates", round=1, stage="generate").to_pandas()["prompt"].tolist() == ["p", "p"]
    assert run.table("candidates", round=1, stage="evaluate").column("prompt").to_pylist() == ["q"]
    with pytest.raises(BadInput, match=r"generate and evaluate of round 1.*`candidates`"):
        run.table("candidates", round=1)
    with pytest.raises(BadInput, match=r"round 2 holds a table `candidates`"):
        run.table("candidates", round=2)


def test_an_altered_table_is_not_handed_out(config: RunConfig) -> None:
    builders.played(config, (1, "score"))
    folder = builders.stage("generate", config).folder
    builders.finished(folder, {"candidates": [builders.candidate_row()]})
    (part,) = folder.glob("*.parquet")
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(PCOError, match=part.name):
        pco.find(config.folder).table("candidates", round=1)


def test_policies_to_evaluate_are_checked_before_anything_runs(tmp_path: Path) -> None:
    executor = Recording()
    with pytest.raises(BadInput, match="config: there is none"):
        pco.evaluate(["some/model"], executor=executor)
    with pytest.raises(BadInput, match="names one twice"):
        pco.evaluate(["a", "a"], config="package:presets/quickstart.yaml", out=tmp_path, executor=executor)
    assert executor.ran == []
