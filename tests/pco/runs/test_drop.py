"""Data dropped from a run are in no table of the fork that is made without them; the rest is shared, the run kept."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from data import files, schemas, store
from data.errors import BadInput, RunConflict
from data.named_rows import Named, read_named
from data.readers import prompt_id
from flows.cli import app
from pco.config.run import RunConfig
from pco.rewards.llm_judge import ANSWERS
from pco.runs import drop, judgements, series, status
from pco.runs.folder import opened, read_config
from pco.runs.status import Point, RunState
from pco.stage import Stage
from tests import builders
from tests.pco.runs.row_runs import play, run_of

TRAIN, HELD, SEEDS, TEXT, TEST = "train {}", "held {}", "seed {}", "prose {}", "final {}"


def made(folder: Path, rounds: int = 1) -> RunConfig:
    """Rounds with at least two of everything; each draws a seed preference."""
    test = builders.write_jsonl(folder / "test.jsonl", [{"prompt": f"final {i}"} for i in range(2)])
    config = run_of(folder, preferences=4, rounds=rounds, replay__rounds=2, prompts__test=str(test))
    builders.write_jsonl(folder / "heldout_text.jsonl", [{"text": f"prose {i}"} for i in range(2)])
    play(config)
    return config


def dropped(config: RunConfig, texts: list[str], run: str = "new") -> tuple[RunConfig, frozenset[str]]:
    """A fork without some prompts, played to its end."""
    resolved = drop.resolve(config, [Named("row", None, text) for text in texts])
    new = builders.changed(config, run=run, prompts__exclude=sorted({*config.prompts.exclude, *resolved.ids}))
    drop.fork(config, new, resolved.ids, drop.holdings(config, resolved.ids))
    return new, resolved.ids


def tables(config: RunConfig) -> Iterator[tuple[Point, str, list[dict[str, Any]]]]:
    for number, name in status.points(config):
        folder = Stage(name, number, config).folder
        manifest = store.read_manifest(folder)
        for table in sorted({part.table for part in manifest.parts} if manifest else set()):
            yield (number, name), table, store.read_table(folder, table).to_pylist()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run that no test changes."""
    return made(tmp_path_factory.mktemp("run"), rounds=2)


POOLS = {TRAIN: 3, HELD: 2, SEEDS: 4, TEXT: 2, TEST: 2}
TEXTS = [kind.format(i) for kind, count in POOLS.items() for i in range(count)]


@settings(max_examples=2, phases=[Phase.explicit, Phase.generate])  # each plays a run on disk
@given(chosen=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=3, unique=True))
@example(chosen=["train 0"])
@example(chosen=["seed 0"])
@example(chosen=["final 1"])
def test_what_is_dropped_is_in_no_table_of_the_fork_and_what_was_untouched_is_shared(
    run: RunConfig, chosen: list[str]
) -> None:
    shutil.rmtree(builders.changed(run, run="new").folder, ignore_errors=True)
    if any({kind.format(i) for i in range(count)} <= set(chosen) for kind, count in POOLS.items() if kind != SEEDS):
        with pytest.raises(BadInput, match="nothing would be left"):
            dropped(run, chosen)
        return
    before = list(tables(run))
    touched = {point for point, _, rows in before for row in rows if row.get("prompt_id") in map(prompt_id, chosen)}
    new, ids = dropped(run, chosen)
    every, frozen = status.points(run), {(0, "prepare"), (0, "prepare_test")}
    first = min((every.index(point) for point in touched - frozen), default=len(every))
    again = {(stage.round, stage.name) for stage in play(new)}
    assert again == {(0, "prepare"), *every[first:], *({(0, "prepare_test")} & touched)}
    assert RunState(new).is_finished
    assert all(row.get("prompt_id") not in ids for _, _, rows in tables(new) for row in rows)
    assert list(tables(run)) == before
    assert given_ids(new) == given_ids(run) - ids


def given_ids(config: RunConfig) -> set[str]:
    """Of all that a run was given."""
    return {
        row["prompt_id"] for _, table, rows in tables(config) if table in {"prompts", "preferences"} for row in rows
    }


def test_other_preferences_keep_their_samples_so_that_the_same_are_drawn(tmp_path: Path) -> None:
    config = made(tmp_path)
    new, ids = dropped(config, ["seed 1"])
    play(new)
    rows = {
        run.run: store.read_table(Stage("prepare", 0, run).folder, "preferences").to_pylist() for run in (config, new)
    }
    assert rows["new"] == [row for row in rows["test"] if row["prompt_id"] not in ids]


def test_all_seed_preferences_may_go(tmp_path: Path) -> None:
    config = made(tmp_path)
    new, ids = dropped(config, [f"seed {i}" for i in range(4)])
    play(new)
    assert RunState(new).is_finished
    assert not any(row.get("prompt_id") in ids for _, _, rows in tables(new) for row in rows)


def test_templates_are_told_the_date_of_the_origins_start(tmp_path: Path) -> None:
    config = made(tmp_path)
    path = Stage("prepare", 0, config).folder / store.MANIFEST
    manifest = json.loads(path.read_text())
    manifest["outputs"]["policy.template_date"] = "2026-01-31"
    path.write_text(json.dumps(manifest))
    new, _ = dropped(config, ["train 0"])
    assert read_config(new.folder).policy.template_date == "2026-01-31"


def test_feedback_touches_every_training(run: RunConfig) -> None:
    holding = drop.Holding((0, "prepare"), "feedback", run.folder, 1)
    assert drop.first_touched(run, [holding]) == (1, "train")


def test_a_second_drop_adds_to_the_first(tmp_path: Path) -> None:
    first, one = dropped(made(tmp_path), ["train 0"])
    play(first)
    second, other = dropped(first, ["train 1"], run="second")
    play(second)
    assert set(second.prompts.exclude) == one | other
    assert not any(row.get("prompt_id") in one | other for _, _, rows in tables(second) for row in rows)


def test_an_unfinished_run_is_forked_as_far_as_it_goes(tmp_path: Path) -> None:
    config = run_of(tmp_path, rounds=2)
    play(config, until=(1, "score"))
    new, ids = dropped(config, ["train 0"])
    assert (1, "generate") in {(stage.round, stage.name) for stage in play(new)}
    assert not any(row.get("prompt_id") in ids for _, _, rows in tables(new) for row in rows)


def test_rows_of_a_stage_that_was_cut_off_are_found_too(tmp_path: Path) -> None:
    config = run_of(tmp_path, rounds=1)
    play(config, until=(1, "generate"))
    stage = Stage("generate", 1, config)
    content = schemas.build("candidates", [builders.candidate_row("train 0")])
    path = store.write_part(stage.folder, "candidates", 0, content, "f", of=2)
    assert path in [holding.path for holding in drop.holdings(config, frozenset({prompt_id("train 0")}))]


def test_a_run_that_is_being_written_is_refused(tmp_path: Path) -> None:
    config = made(tmp_path)
    with opened(config), pytest.raises(RunConflict, match="is being written by"):
        dropped(config, ["train 0"])
    assert not builders.changed(config, run="new").folder.exists()


def test_rows_that_are_nowhere_in_the_run_are_refused_and_a_near_one_is_named(run: RunConfig) -> None:
    with pytest.raises(BadInput, match=rf"holds none of these rows[\s\S]*it is {prompt_id('train 0')}"):
        drop.resolve(run, [Named("line 1", "TRAIN  0", "TRAIN  0"), Named("line 2", "0" * 16, None)])
    resolved = drop.resolve(run, [Named("line 1", "train 0", "train 0"), Named("line 2", "0" * 16, None)])
    assert resolved.missing == ["line 2"]


def test_a_line_that_is_the_id_of_one_prompt_and_the_text_of_another_is_refused(tmp_path: Path) -> None:
    config = run_of(tmp_path, rounds=1)
    builders.write_prompts(tmp_path, ["train", prompt_id("train")], ["held"])
    play(config)
    with pytest.raises(BadInput, match="fits 2 prompts"):
        drop.resolve(config, [Named("line 1", prompt_id("train"), prompt_id("train"))])


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.txt", "rows.csv"])
def test_files_of_any_form_name_prompts_by_id_or_text(run: RunConfig, tmp_path: Path, name: str) -> None:
    content = {
        "rows.jsonl": json.dumps({"prompt": "train 0"}) + "\n" + json.dumps({"prompt_id": prompt_id("held 1")}),
        "rows.txt": f"train 0\n\n{prompt_id('held 1')}\n",
        "rows.csv": "prompt\ntrain 0\nheld 1\n",
    }
    path = tmp_path / name
    path.write_text(content[name])
    assert drop.resolve(run, read_named(path)).ids == {prompt_id("train 0"), prompt_id("held 1")}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "has `chosen`"),
        ({"prompt": "a", "text": "b"}, "has `prompt` and `text`"),
        ({"prompt": "a", "prompt_id": "0" * 16}, "Which is meant"),
        ({"id": "7"}, "Expected `prompt_id`, `prompt` or `text`"),
        ({"prompt_id": 7}, "`prompt_id` is 7"),
    ],
)
def test_a_row_that_may_mean_two_things_is_refused(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        read_named(builders.write_jsonl(tmp_path / "rows.jsonl", [row]))


@pytest.mark.parametrize(("name", "content"), [("rows.txt", "\n"), ("rows.jsonl", "")])
def test_a_file_that_names_nothing_is_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(BadInput, match="names nothing"):
        read_named(tmp_path / name)


def test_the_command_says_where_the_rows_are_makes_the_fork_and_tells_what_to_delete(tmp_path: Path) -> None:
    config = made(tmp_path, rounds=2)
    rows = builders.write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "train 0"}, {"prompt": "nowhere"}])
    copy = builders.changed(config, run="copy")
    play(copy)
    quoting = [config.folder / ANSWERS, config.folder / judgements.FOLDER / "mine" / ANSWERS]
    cut_off = Stage("score", 2, config).folder / ".scores-00000.parquet.1.tmp"
    files.write_text(cut_off, "half of a table")
    for path in quoting:
        files.write_text(path, "{}\n")

    def told(*arguments: str, result_code: int = 0) -> str:
        options = ["--rows", str(rows), "--runs-dir", config.runs_dir]
        result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["drop", "test", *arguments, *options])
        assert result.exit_code == result_code, result.output
        return result.output

    looked = told("--dry-run")
    assert "everything from `generate` of round 1 on" in looked
    assert "1 rows name nothing" in looked
    assert "candidates" in looked
    assert sorted(path.name for path in Path(config.runs_dir).iterdir()) == ["copy", "test"]
    output = told("new")
    for path in (
        Stage("prepare", 0, config).folder / "prompts-00000.parquet",
        Stage("train", 1, config).model_folder,
        Stage("train", 2, config).model_folder,
        Stage("generate", 2, copy).folder / "candidates-00000.parquet",
        Stage("train", 2, copy).model_folder,
        quoting[0],
        cut_off,
        quoting[1].parent.parent,
    ):
        assert str(path) in output
    assert "They came from prompts.train" in output
    assert "`pco resume new` would run, in round 0: prepare, then 2 more rounds" in output
    assert "exists" in told("new", result_code=2)
    assert "--dry-run" in told(result_code=2)


def test_the_window_of_a_run_of_a_series_is_to_be_deleted_and_the_file_it_came_from_is_named(tmp_path: Path) -> None:
    config = run_of(tmp_path, series={"name": "nightly"})
    with series.entered(config) as entered:
        play(entered)
        config = entered
    ids = drop.resolve(config, [Named("row", None, "train 0")]).ids
    found = drop.holdings(config, ids)
    window = config.folder / series.WINDOW
    assert window in drop.to_delete(config, found, ids)
    assert drop.given_by(config, found, ids) == [f"prompts.train ({tmp_path / 'train.jsonl'})"]
    assert window in drop.others(builders.changed(config, run="another"), ids)[0]
    held = drop.resolve(config, [Named("row", None, "held 0")]).ids
    assert window not in drop.to_delete(config, drop.holdings(config, held), held)


def test_the_page_of_a_study_that_quotes_a_run_is_to_be_deleted(tmp_path: Path) -> None:
    config = run_of(tmp_path, run="quick-base-s0", rounds=1)
    play(config)
    pages = [Path(config.runs_dir) / "studies" / name / "report.html" for name in ("quick", "other")]
    for page in pages:
        files.write_text(page, "quoted")
    ids = drop.resolve(config, [Named("row", None, "held 0")]).ids
    assert set(pages) & set(drop.to_delete(config, drop.holdings(config, ids), ids)) == {pages[0]}
