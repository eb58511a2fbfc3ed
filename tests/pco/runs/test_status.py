"""What a run's folder says of the run."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from data import files, schemas, store
from data.errors import BadInput, CorruptArtifact
from pco import specs
from pco.config.run import RunConfig
from pco.execution import at_work, launcher
from pco.runs import approvals, fork, status, verify
from pco.runs.folder import opened
from pco.runs.status import RunState, StageState
from pco.specs import StageName, stages_of
from pco.stage import Stage
from pco.training import checkpoints
from tests import builders


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run of two rounds that has not begun."""
    builders.write_prompts(tmp_path, ["train"], ["heldout"])
    made = builders.config(tmp_path, rounds=2)
    with opened(made):
        pass
    return made


def _line(config: RunConfig, number: int, name: StageName) -> StageState:
    (line,) = [line for line in RunState(config).stages if (line.round, line.stage) == (number, name)]
    return line


def _states(config: RunConfig) -> list[str]:
    return [line.state for line in RunState(config).stages]


def test_every_stage_of_every_round_has_a_line_in_the_order_they_run(config: RunConfig) -> None:
    lines = RunState(config).stages
    assert [line.stage for line in lines] == [*stages_of(config, 0), *stages_of(config, 1), *stages_of(config, 2)]
    assert {line.state for line in lines} == {"not started"}
    assert RunState(config).to_do == "`pco resume test` would run, in round 0: prepare, evaluate, then 2 more rounds."


def test_only_losses_with_a_reference_have_its_stage(config: RunConfig) -> None:
    dpo = builders.changed(config, train__loss={"kind": "dpo"})
    assert "refer" in [line.stage for line in RunState(dpo).stages]


def test_a_run_that_is_half_done_says_what_is_left(config: RunConfig) -> None:
    builders.played(config, until=(1, "train"))
    assert _states(config) == ["done"] * 5 + ["not started"] * 9
    expected = "`pco resume test` would run, in round 1: train, evaluate, decide, then 1 more round."
    assert RunState(config).to_do == expected
    assert not RunState(config).is_finished


@pytest.mark.parametrize("refused", [0, 1])
def test_a_run_whose_rounds_are_through_or_refused_is_finished(config: RunConfig, refused: int) -> None:
    builders.played(config, refused=refused)
    assert RunState(config).is_finished
    assert RunState(config).to_do == "Nothing is left to do."


def test_a_round_that_waits_for_a_person_says_what_is_asked(config: RunConfig) -> None:
    config = builders.changed(config, gate__otherwise="ask")
    with pytest.raises(BadInput, match="waits for no answer"):
        RunState(config).awaited()
    builders.played(config, until=(1, "decide"))
    asked = f"round 1 refused: reward fell. {approvals.how_to(config)}"
    files.write_text(Stage("decide", 1, config).error_file, asked)
    assert (_line(config, 1, "decide").state, _line(config, 1, "decide").note) == ("waiting", asked)
    assert RunState(config).to_do == asked
    assert (RunState(config).awaited().round, RunState(config).awaited().name) == (1, "decide")
    approvals.write(RunState(config).awaited(), approvals.Answer(approve=True))
    assert (_line(config, 1, "decide").state, _line(config, 1, "decide").note) == ("partial", "answered")
    assert RunState(config).to_do.startswith("`pco resume test` would run, in round 1: decide")


@pytest.mark.process
def test_a_stage_that_failed_says_why_and_one_that_was_killed_that_it_was(config: RunConfig) -> None:
    stage = builders.stage("score", config, {"candidates": builders.PRETEND})
    with pytest.raises(CorruptArtifact):
        launcher.run(stage)
    line = _line(config, 1, "score")
    assert line.state == "failed"
    assert line.note.startswith("/nowhere: has no manifest.json")
    Stage("score", 1, config).error_file.unlink()
    assert _line(config, 1, "score").state == "interrupted"


def test_a_run_that_is_held_is_running(config: RunConfig) -> None:
    log = Stage("prepare", 0, config).log_file
    files.write_text(log, "")
    assert _states(config)[0] == "interrupted"
    with opened(config):
        assert _states(config)[0] == "running"
        assert [line.state for line in status.of_all(Path(config.runs_dir))] == ["running"]
        assert RunState(config).to_do == "A process is writing to this run now."
    assert [line.state for line in status.of_all(Path(config.runs_dir))] == ["unfinished"]


def test_a_stage_cut_short_tells_the_shards_or_steps_that_it_has_kept(config: RunConfig) -> None:
    folder = builders.stage("generate", config).folder
    for shard in (0, 3):
        content = schemas.build("candidates", [builders.candidate_row()])
        store.write_part(folder, "candidates", shard, content, "f" * 16, of=16)
    assert (_line(config, 1, "generate").state, _line(config, 1, "generate").note) == ("partial", "2/16 shards")
    builders.checkpoint(builders.stage("train", config).folder / checkpoints.FOLDER, 2)
    assert (_line(config, 1, "train").state, _line(config, 1, "train").note) == ("partial", "step 2 of 9")


def test_shards_of_an_attempt_with_other_settings_are_not_counted(config: RunConfig) -> None:
    folder = builders.stage("generate", config).folder
    content = schemas.build("candidates", [builders.candidate_row()])
    for shard, fingerprint in enumerate(["old", "old", "new"]):
        store.write_part(folder, "candidates", shard, content, fingerprint, of=5)
    assert store.committed(folder) == (1, 5)


def test_of_the_tables_of_a_stage_the_one_made_in_shards_is_counted(config: RunConfig) -> None:
    folder = builders.stage("evaluate", config).folder
    for shard in range(8):
        content = schemas.build("candidates", [builders.candidate_row()])
        store.write_part(folder, "candidates", shard, content, "f", of=8)
    store.write_part(folder, "evaluations", 0, schemas.build("evaluations", []), "f")
    assert store.committed(folder) == (8, 8)


def test_what_was_set_aside_is_not_started_and_only_the_next_stage_can_be_running(config: RunConfig) -> None:
    builders.played(config)
    for number, name in status.points(config):
        error = Stage(name, number, config).error_file
        files.write_text(error.with_suffix(".log"), "")
    files.write_text(Stage("train", 2, config).error_file, "an old failure")
    fork.set_aside(config, (1, "train"))
    assert _states(config) == ["done"] * 5 + ["not started"] * 9
    for name in ("train", "evaluate"):
        files.write_text(Stage(name, 1, config).log_file, "")
    with opened(config):
        assert _states(config)[5:8] == ["running", "interrupted", "not started"]


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 99}'])
def test_a_damaged_manifest_is_told_in_its_line_and_hides_no_other(config: RunConfig, content: str) -> None:
    builders.played(config)
    manifest = builders.stage("pair", config).folder / store.MANIFEST
    manifest.write_text(content)
    line = _line(config, 1, "pair")
    assert line.state == "damaged" and str(manifest) in line.note
    assert _states(config)[:4] == ["done"] * 4
    assert "would be refused at `pair` of round 1" in RunState(config).to_do
    assert [str(manifest) in told for told in verify.damage(config)] == [True]


@pytest.mark.parametrize("content", [b"{", b"", b"- 1", b"\xff"])
def test_a_run_whose_config_is_damaged_hides_no_other(config: RunConfig, content: bytes) -> None:
    other = builders.changed(config, run="another")
    with opened(other):
        pass
    (config.folder / "config.yaml").write_bytes(content)
    lines = {line.name: line.state for line in status.of_all(Path(config.runs_dir))}
    assert lines["another"] == "unfinished"
    assert lines["test"].startswith(f"damaged: {config.folder / 'config.yaml'}: ")


def test_a_finished_stage_tells_its_rows_and_what_was_dropped(config: RunConfig) -> None:
    builders.played(config, until=(0, "evaluate"))
    line = _line(config, 0, "prepare")
    assert (line.state, line.rows, line.dropped) == ("done", "1 rows", "")


def test_a_round_that_the_gate_refused_says_so_even_where_the_run_went_on(config: RunConfig) -> None:
    retried = builders.changed(config, gate__otherwise="roll_back")
    builders.played(retried, refused=1)
    assert [_line(retried, number, "decide").note for number in (1, 2)] == ["round 1 no", "promoted"]
    fork.fork(retried, forked := builders.changed(retried, run="forked"), None)
    assert _line(forked, 1, "decide").note == "from test; round 1 no"


def test_what_changed_since_a_stage_was_made_is_told_and_with_it_all_that_follows(
    config: RunConfig, tmp_path: Path
) -> None:
    builders.played(config, until=(2, "generate"))
    (tmp_path / "train.jsonl").write_text('{"prompt": "another"}\n')
    assert _line(config, 0, "prepare").state == "stale"
    assert _line(config, 0, "prepare").note == f"its input `train` changed ({tmp_path / 'train.jsonl'})"
    assert {line.state for line in RunState(config).stages if line.round == 1} == {"stale"}
    assert "would be refused at `prepare` of round 0: its input `train` changed" in RunState(config).to_do


def test_a_setting_that_a_stage_was_made_without_is_named_with_both_values(config: RunConfig) -> None:
    builders.played(config)
    line = _line(builders.changed(config, train__learning_rate=0.5), 1, "train")
    assert (line.state, line.note) == ("stale", "train.learning_rate was 5e-05, is 0.5")


def test_a_stage_made_by_another_version_of_the_code_is_stale(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    builders.played(config)
    monkeypatch.setitem(specs.SPECS, "pair", replace(specs.SPECS["pair"], version=2))
    assert _line(config, 1, "pair").note == "it was made by another version of this stage's code"


def test_prompts_that_are_gone_since_they_were_frozen_count_as_unchanged(config: RunConfig, tmp_path: Path) -> None:
    builders.played(config)
    (tmp_path / "train.jsonl").unlink()
    assert set(_states(config)) == {"done"}


def test_damage_is_found_wherever_it_is_and_named(config: RunConfig) -> None:
    builders.played(config)
    scores = builders.finished(builders.stage("score", config).folder, {"scores": [builders.score_row("p", 0, 1.0)]})
    assert verify.damage(config) == []
    (config.folder / "round-01/policy/model.safetensors").write_text("other")
    (config.folder / "round-02/policy/model.safetensors").unlink()
    (config.folder / "round-02/policy").rmdir()
    part = store.part_path(scores.folder, "scores", 0)
    part.write_bytes(part.read_bytes()[:-1])
    told = verify.damage(config)
    assert len(told) == 3
    assert told[0].startswith(f"{part}: its content is not what its manifest recorded")
    assert "round-01/policy: its files are not those that were saved" in told[1]
    assert "round-02/policy: missing" in told[2]


def test_a_table_that_no_stage_holds_is_refused(config: RunConfig) -> None:
    with pytest.raises(BadInput, match="`pairs` .*round 1"):
        verify.folders_with(config, "pairs", 1)


def test_a_stage_at_work_says_what_each_of_its_workers_makes(config: RunConfig) -> None:
    builders.played(config, until=(1, "generate"))
    stage = Stage("generate", 1, config)
    files.write_text(stage.log_file, "")
    lines = [at_work.AtWork(0, 3, 812.25, "tokens"), at_work.AtWork(1, None, 0.0, "tokens")]
    files.write_text(at_work.path(stage), json.dumps([asdict(line) for line in lines]))
    with opened(config):
        line = _line(config, 1, "generate")
    assert (line.state, line.note) == ("running", "worker 0: shard 3, 812.2 tokens/s; worker 1: no shard left")
    files.write_text(at_work.path(stage), "{")
    with opened(config):
        assert _line(config, 1, "generate").note == ""
