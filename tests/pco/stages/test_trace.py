"""A trace: the pairs of the training behind an answer, ranked, kept under the run, and read by the report."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from data import schemas, store
from data.errors import BadInput
from flows.cli import app
from pco.config.run import RunConfig
from pco.config.trace import Trace
from pco.execution import launcher
from pco.runs import fork, retention, traces
from pco.runs.lineage import lineage
from pco.runs.status import RunState
from pco.stage import Stage
from pco.stages import trace
from tests import builders
from tests.pco.runs.row_runs import play, run_of


@pytest.fixture
def run(tmp_path: Path, tiny: Path) -> RunConfig:
    """A round that began from the tiny model, with pairs of its own and seed preferences."""
    settings = {"train__precision": "fp32", "train__epochs": 2, "train__pairs_per_step": 2}
    config = run_of(tmp_path, tiny, preferences=2, rounds=1, replay__share=9.0, **settings)
    play(config)
    return config


def planned(config: RunConfig, named: str = "held 0", **how: Any) -> Stage[Trace]:
    return traces.plan(config, lineage(config, None, named), **how)


def influences(stage: Stage[Trace]) -> list[float]:
    return [row["influence"] for row in store.read_table(stage.folder, "influence").to_pylist()]


def made(stage: Stage[Trace]) -> Stage[Trace]:
    read = Stage.from_json(stage.to_json())
    assert read == stage
    trace.run(read)
    assert read.finished()
    return stage


def test_every_pair_is_ranked_and_the_run_is_what_it_was(run: RunConfig) -> None:
    before = [stage.manifest for stage in RunState(run).stages]
    found = traces.found(run, made(planned(run)).folder)
    assert found.parameters == "all"
    assert [moved.pair.get("round") for moved in found.moved].count(0) == 2
    assert len(found.moved) == 5
    order = [moved.influence for moved in found.moved]
    assert order == sorted(order, reverse=True)
    assert len(set(order)) == 5
    assert [moved.influence for moved in found.raised(9)] == [value for value in order if value > 0]
    assert [moved.influence for moved in found.lowered(9)] == [value for value in reversed(order) if value < 0]
    assert found.logprob_before < 0
    assert [stage.manifest for stage in RunState(run).stages] == before
    assert RunState(run).is_finished


def test_fewer_parameters_and_other_answers_have_traces_of_their_own(run: RunConfig) -> None:
    stages = [planned(run, parameters="head"), planned(run, parameters="last-blocks"), planned(run, sample=0)]
    values = [influences(made(stage)) for stage in stages]
    assert len({stage.folder for stage in stages}) == 3
    assert len(set(map(tuple, values))) == 3


def test_an_interrupted_trace_goes_on_at_its_first_missing_shard(
    run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "_SHARD_PAIRS", 2)
    stage, real, calls = planned(run), trace.influence.influence, []

    def dying(*arguments: Any, **options: Any) -> float:
        calls.append(1)
        if len(calls) == 4:
            raise MemoryError
        return real(*arguments, **options)

    monkeypatch.setattr(trace.influence, "influence", dying)
    with pytest.raises(MemoryError):
        trace.run(stage)
    trace.run(stage)
    assert len(calls) == 4 + 3  # the first shard of two pairs was kept
    whole = influences(stage)
    shutil.rmtree(stage.folder)
    trace.run(stage)
    assert influences(stage) == whole


def test_what_is_made_anew_is_traced_anew(run: RunConfig) -> None:
    stage = made(planned(run))
    assert [found.folder for found in traces.finished(run, 1)] == [stage.folder]
    fork.set_aside(run, (1, "evaluate"))
    assert list(traces.finished(run, 1)) == []


def test_a_trace_moves_with_its_run(run: RunConfig) -> None:
    made(planned(run))
    moved = builders.changed(run, run="moved")
    run.folder.rename(moved.folder)
    (found,) = traces.finished(moved, 1)
    assert found.folder.is_relative_to(moved.folder)
    assert len(found.moved) == 5


def no_training(config: RunConfig) -> None:
    planned(config, "train 0", sample=0)


def no_greedy_answer(config: RunConfig) -> None:
    planned(config, "train 0")


def no_such_sample(config: RunConfig) -> None:
    planned(config, sample=7)


def no_policy(config: RunConfig) -> None:
    prepared = Stage("prepare", 0, config)
    manifest = store.read_manifest(prepared.folder)
    assert manifest
    folder = prepared.starting_policy(manifest).folder
    away = folder.with_name("away")
    folder.rename(away)
    try:
        planned(config)
    finally:
        away.rename(folder)


@pytest.mark.parametrize(
    ("attempt", "told"),
    [
        (no_training, "the starting policy gave this answer"),
        (no_greedy_answer, "no greedy answer in round 1. Name a sample: `--sample N` with N of 0, 1"),
        (no_such_sample, "no sample 7"),
        (no_policy, "is gone, and gradients are taken at it"),
    ],
)
def test_what_cannot_be_traced_is_refused(run: RunConfig, attempt: Any, told: str) -> None:
    with pytest.raises(BadInput, match=told):
        attempt(run)
    assert not (run.folder / traces.FOLDER).exists()


def test_a_policy_that_was_removed_to_save_room_is_told_so(tmp_path: Path) -> None:
    config = run_of(tmp_path, rounds=2)
    play(config)
    first = Stage("train", 1, config).model_folder
    shutil.rmtree(first)
    retention.mark_removed(first)
    with pytest.raises(BadInput, match="was removed to save room"):
        planned(config)


@pytest.mark.parametrize(("free", "which"), [(2**40, "all"), (2_000_000, "last-blocks"), (2**10, "head")])
def test_by_default_as_many_parameters_count_as_memory_allows(
    run: RunConfig, monkeypatch: pytest.MonkeyPatch, free: int, which: str
) -> None:
    monkeypatch.setattr(traces.hardware, "gpu_memory", lambda: free)
    monkeypatch.setattr(traces, "LAST_BLOCKS", 1)  # of two
    assert planned(run).config.parameters == which


def told(arguments: Sequence[str], status: int = 0) -> str:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, list(arguments))
    assert result.exit_code == status, result.output
    return result.output


def test_the_command_prints_pairs_with_their_texts_and_makes_nothing_twice(
    run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Stage[Trace]] = []

    def in_this_process(stage: Stage[Trace], **_: Any) -> store.Manifest:
        if stage.finished() is None:
            ran.append(stage)
            trace.run(stage)
        manifest = stage.finished()
        assert manifest
        return manifest

    monkeypatch.setattr(launcher, "run", in_this_process)
    command = ["trace", f"{run.folder}:1", "held 0", "--influence", "--top", "1"]
    output = told(command)
    for part in ("Raised it", "Lowered it", "nats", "Table: "):
        assert part in output
    assert told(command).partition("Raised it")[2] == output.partition("Raised it")[2]
    assert len(ran) == 1
    with traces.opened(planned(run)):
        assert "is being written by" in told(command, status=2)
    assert "add it, or leave them out" in told([*command[:3], "--top", "1"], status=2)


def test_the_report_shows_the_pairs_of_an_answer_that_was_traced_and_of_no_other(run: RunConfig) -> None:
    from pco.report import gather, page

    def traced() -> dict[str, int]:
        changes = gather.run_report(run).changes
        assert changes
        shown = [*changes.most_worsened, *changes.most_improved]
        return {change.prompt: len(change.traced) for change in shown}

    _worsen(run)
    assert set(traced().values()) == {0}
    stage = made(planned(run))
    found = traces.found(run, stage.folder)
    assert traced() == {"held 0": min(3, len(found.raised(3))), "held 1": 0}
    html = page.render(gather.run_report(run))
    assert html.count("log-probability most") == 1
    assert found.moved[0].pair["chosen"] in html


def _worsen(run: RunConfig) -> None:
    """Give the answers of round 1 a lower reward than the start's."""
    stage = Stage("evaluate", 1, run)
    manifest = store.read_manifest(stage.folder)
    assert manifest
    rows = store.read_table(stage.folder, "evaluations").to_pylist()
    for row in rows:
        row["value"] -= row["measure"] == "reward"
    store.write_part(stage.folder, "evaluations", 0, schemas.build("evaluations", rows), manifest.fingerprint)
    again = {name: getattr(manifest, name) for name in ("stage", "fingerprint", "unit", "inputs", "settings")}
    store.finish(stage.folder, **again, rows_in=0, rows_out=0, dropped={}, started=0.0)


@pytest.mark.e2e
def test_the_command_traces_in_a_process_of_its_own(run: RunConfig) -> None:
    assert "Raised it" in told(["trace", f"{run.folder}:1", "held 0", "--influence"])
    assert len(traces.found(run, planned(run).folder).moved) == 5
