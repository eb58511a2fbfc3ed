"""A study's runs one after the other or several at a time, with stages that are pretended; and `pco study` as typed."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from data import schemas
from data.errors import StageFailed
from flows import studies as flow
from flows import study_cli
from flows.cli import app
from pco.config.run import RunConfig
from pco.config.study import Study
from pco.runs import study as studies
from pco.runs import study_results
from pco.runs.folder import report_path
from tests import builders
from tests.pco.config.test_study import write
from tests.pco.runs.test_study import study_of

runner = CliRunner(env={"COLUMNS": "200"})
Play = Callable[[RunConfig], object]


@dataclass
class Playing:
    """Runs whose stages are pretended: what is called before each, and how many were made at a time."""

    before: list[Play] = field(default_factory=list)
    busy: set[str] = field(default_factory=set)
    most: int = 0

    def play(self, config: RunConfig) -> None:
        self.busy.add(config.run)
        self.most = max(self.most, len(self.busy))
        try:
            for act in self.before:
                act(config)
            builders.played(config)
            report_path(config).write_text("report")
        finally:
            self.busy.remove(config.run)


@pytest.fixture
def playing(monkeypatch: pytest.MonkeyPatch) -> Playing:
    """Runs of studies are pretended."""
    plays = Playing()
    monkeypatch.setattr(flow, "run_rounds", plays.play)
    monkeypatch.setattr(flow, "get_run_logger", lambda: logging.getLogger("study"))
    return plays


def one_round(folder: Path, seeds: Sequence[int] = (0, 1)) -> Study:
    """Two variants, one round."""
    study = study_of(folder, seeds)
    variants = {name: builders.changed(config, rounds=1) for name, config in study.variants.items()}
    return study.model_copy(update={"variants": variants})


def made(study: Study, at_a_time: int) -> dict[flow.Run, str]:
    with studies.opened(study):
        if at_a_time == 1:
            return flow._in_order(study)
        return flow._several(study.model_copy(update={"max_concurrent": at_a_time}))


def test_the_table_does_not_depend_on_how_many_runs_are_made_at_a_time(tmp_path: Path, playing: Playing) -> None:
    tables = {}
    for at_a_time in (1, 3):
        study, playing.most = one_round(tmp_path / str(at_a_time)), 0
        assert made(study, at_a_time) == {}
        tables[at_a_time] = studies.lines(study)
        assert playing.most <= at_a_time
    assert tables[1] == tables[3]
    assert {line.state for line in tables[1]} == {"finished"}


@pytest.mark.parametrize("at_a_time", [1, 2])
def test_a_run_that_fails_does_not_stop_the_others_and_is_tried_again(
    tmp_path: Path, playing: Playing, at_a_time: int
) -> None:
    study, calls = one_round(tmp_path), list[str]()

    def fail(config: RunConfig) -> None:
        calls.append(config.run)
        if config.run == "s-dpo-s0":
            raise StageFailed("round 1/1 · train: out of memory\nmore")

    playing.before.append(fail)
    assert made(study, at_a_time) == {("dpo", 0): "round 1/1 · train: out of memory"}
    states = {(line.variant, line.seed): line.state for line in studies.lines(study)}
    assert states == {("pco", 0): "finished", ("dpo", 0): "unfinished", ("pco", 1): "finished", ("dpo", 1): "finished"}
    playing.before.clear()
    again: list[str] = []
    playing.before.append(lambda config: again.append(config.run))
    assert made(study, at_a_time) == {}
    assert again == ["s-dpo-s0"]  # finished runs are only looked at


def test_when_the_first_run_fails_the_others_share_what_it_had_finished(tmp_path: Path, playing: Playing) -> None:
    study = one_round(tmp_path, [0])

    def fail(config: RunConfig) -> None:
        if config.run == "s-pco-s0":
            builders.played(config, until=(1, "score"))
            raise StageFailed("no more")

    playing.before.append(fail)
    assert list(made(study, 2)) == [("pco", 0)]
    assert studies.lines(study)[1].shared == 3


def test_a_study_that_died_goes_on_to_the_same_table(tmp_path: Path, playing: Playing) -> None:
    whole = one_round(tmp_path / "whole")
    made(whole, 1)
    study, deaths = one_round(tmp_path / "killed"), {"s-pco-s0": "pair", "s-dpo-s0": "refer", "s-dpo-s1": "train"}

    def die(config: RunConfig) -> None:
        name: Any = deaths.pop(config.run, None)
        if name is not None:
            builders.played(config, until=(1, name))
            raise KeyboardInterrupt  # as a kill, it ends all of it

    playing.before.append(die)
    while deaths:
        with pytest.raises(KeyboardInterrupt):
            made(study, 1)
    assert made(study, 1) == {}
    assert studies.lines(study) == studies.lines(whole)


def test_a_study_without_runs_says_so_as_typed(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    with studies.opened(study):
        builders.played(study.config("pco", 0), until=(1, "train"))
    runs = ["--runs-dir", str(study.runs_dir)]
    shown = runner.invoke(app, ["study", "status", "s", *runs])
    assert shown.exit_code == 0
    assert "s-pco-s0" in shown.output and "not begun" in shown.output
    best = runner.invoke(app, ["study", "best", "s", *runs])
    assert best.exit_code == 2
    assert "nothing to rank yet" in best.output
    unknown = runner.invoke(app, ["study", "report", "other", *runs])
    assert unknown.exit_code == 2
    assert "no study here" in unknown.output and "Traceback" not in unknown.output


def test_a_study_is_over_once_its_tables_are_of_what_its_runs_have_come_to(
    tmp_path: Path, playing: Playing, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = one_round(tmp_path, [0])
    failing = {"s-dpo-s0"}
    monkeypatch.setattr(study_results, "results", lambda _: schemas.build("study_results", []))

    def fail(config: RunConfig) -> None:
        if config.run in failing:
            raise StageFailed("no more")

    def publish() -> None:
        (study.folder / "report.html").write_text("report")
        study_results.write(study)

    playing.before.append(fail)
    assert made(study, 1)
    publish()
    assert not study_cli._is_over(study)
    failing.clear()
    assert made(study, 1) == {}
    assert not study_cli._is_over(study), "it was killed before the tables were written again"
    publish()
    assert study_cli._is_over(study)
    (study.folder / "report.html").unlink()
    assert not study_cli._is_over(study)


def test_other_settings_end_with_status_2_before_anything_is_made(tmp_path: Path) -> None:
    from pco.config.study import load

    with studies.opened(load(write(tmp_path))):
        pass
    other = write(tmp_path, variants={"pco": {}, "dpo": {"train.loss": {"kind": "dpo", "beta": 0.5}}})
    result = runner.invoke(app, ["study", "run", str(other)])
    assert result.exit_code == 2
    assert "variant `dpo`: train.loss.beta: 0.1 there, 0.5 now" in result.output
    assert "Traceback" not in result.output


def test_a_dry_run_checks_every_variant_and_tells_what_would_be_shared(tmp_path: Path, tiny: Path) -> None:
    builders.write_prompts(tmp_path, train=["the river", "a small town"], heldout=["the old bridge"])
    base = builders.raw_config(tmp_path, tiny) | {"generate": {"max_tokens": 8}}
    path = write(tmp_path, base=None, run=base, seeds=[5])
    result = runner.invoke(app, ["study", "run", str(path), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "dpo: checked: 2 training prompts" in result.output
    assert "Would make s-dpo-s5: 2 round(s), sharing 5 stages with s-pco-s5." in result.output
    assert not (tmp_path / "runs").exists()
    raw = yaml.safe_load(path.read_text())
    raw["variants"]["long"] = {"generate.max_tokens": 5000}
    path.write_text(yaml.safe_dump(raw))
    spoilt = runner.invoke(app, ["study", "run", str(path), "--dry-run"])
    assert spoilt.exit_code == 2
    assert "does not fit" in spoilt.output


def test_help_of_every_command_explains_it() -> None:
    for command in ("run", "status", "report", "best"):
        result = runner.invoke(app, ["study", command, "--help"])
        assert result.exit_code == 0
        assert len(result.output) > 300
