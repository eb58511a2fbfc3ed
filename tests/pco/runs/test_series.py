"""What a run of a series begins from, which rows it takes, and when it does not begin."""

import json
import shutil
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from data.errors import BadInput, CorruptArtifact, RunConflict, Skipped
from pco.config.run import RunConfig, parse
from pco.config.series import Begun
from pco.runs import series
from pco.runs.folder import opened, read_config
from pco.runs.fork import fork
from pco.runs.status import RunState
from tests import builders

NOW = datetime.now(UTC)
LATER = NOW + timedelta(days=1)  # a night after that of the runs that the tests play


def raw(folder: Path, run: str, **settings: Any) -> dict[str, Any]:
    return builders.raw_config(folder) | {"run": run, "rounds": 2, "series": {"name": "s", "prompts": 2} | settings}


def loaded(folder: Path, run: str, **settings: Any) -> RunConfig:
    return parse(raw(folder, run, **settings), source="test")


def write(folder: Path, rows: int) -> None:
    builders.write_prompts(folder, [f"prompt {i}" for i in range(rows)], ["held out"])


def begun(config: RunConfig, due: datetime = LATER) -> RunConfig:
    """The run, begun, as it stands in its config.yaml."""
    with series.entered(config, due=due) as entered, opened(entered):
        return entered


def played(folder: Path, run: str, *, refused: tuple[int, ...] = (), **settings: Any) -> Begun:
    config = begun(loaded(folder, run, **settings))
    builders.played(config, refused=refused)
    assert config.begun is not None
    return config.begun


def window(config: RunConfig) -> list[str]:
    lines = Path(str(config.prompts.train)).read_text().splitlines()
    return [json.loads(line)["prompt"] for line in lines]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, 7)
    return tmp_path


def test_each_run_begins_from_the_best_of_the_last_with_the_next_rows(folder: Path) -> None:
    first = played(folder, "a")
    assert (first.from_run, first.first_row, first.end_row) == (None, 0, 2)
    second = begun(loaded(folder, "b"))
    assert second.begun is not None
    assert (second.begun.from_run, second.begun.from_round) == ("a", 2)
    assert (second.begun.first_row, second.begun.end_row, window(second)) == (2, 4, ["prompt 2", "prompt 3"])
    best = read_config(folder / "runs" / "a").folder / "round-02" / "policy"
    assert (second.policy.model, second.begun.policy) == (str(best), builders.model(best).fingerprint)
    builders.played(second)
    assert played(folder, "c").from_run == "b"
    last = begun(loaded(folder, "d", prompts=None))
    assert window(last) == ["prompt 6"], "what is left"


def test_where_nothing_was_promoted_the_next_run_begins_from_the_same_policy(folder: Path) -> None:
    played(folder, "a")
    refused = played(folder, "b", refused=(1,))
    after = begun(loaded(folder, "c"))
    assert after.begun is not None
    assert (after.begun.from_run, after.begun.from_round, after.begun.first_row) == ("a", 2, 4)
    assert after.begun.policy == refused.policy == builders.model(folder / "runs/a/round-02/policy").fingerprint


def test_a_resume_on_another_day_is_the_same_run_whatever_happened_meanwhile(folder: Path) -> None:
    played(folder, "a")
    before = begun(loaded(folder, "b"))
    builders.played(before, until=(1, "train"))
    write(folder, 20)
    again = loaded(folder, "b")
    assert again == before
    assert begun(again) == before == read_config(before.folder)
    # As Prefect hands a whole config to a flow: what the run came to is only in its folder.
    formats = {"engine": before.engine, "train": before.train}
    assert begun(RunConfig.model_validate(raw(folder, "b") | formats)) == before
    assert [stage.title for stage in builders.played(before)][-1] == "round 2/2 · decide"
    assert RunState(read_config(before.folder)).is_finished


def test_another_policy_or_window_for_a_run_that_has_begun_is_refused(folder: Path) -> None:
    played(folder, "a")
    begun(loaded(folder, "b"))
    with pytest.raises(RunConflict, match=r"policy\.model: '.*a/round-02/policy' there, 'other/model' now"):
        begun(parse(raw(folder, "b") | {"policy": {"model": "other/model"}}, source="test"))
    with pytest.raises(RunConflict, match=r"series\.prompts: 2 there, 3 now"):
        begun(loaded(folder, "b", prompts=3))
    begun(loaded(folder, "b", on_overlap="queue", at_least=2))


def test_a_run_that_failed_is_passed_over_and_its_rows_go_to_the_next(folder: Path) -> None:
    played(folder, "a")
    failed = begun(loaded(folder, "b"))
    builders.played(failed, until=(1, "train"))
    assert begun(failed) == failed, "nothing has taken its place yet"
    after = begun(loaded(folder, "c"))
    assert after.begun is not None and failed.begun is not None
    assert (after.begun.number, after.begun.from_run) == (3, "a")
    assert window(after) == window(failed)
    with pytest.raises(RunConflict, match=r"b: was not finished when c began.* rows 3 to 4.*pco fork b NEW"):
        begun(failed)
    builders.played(after)
    builders.played(begun(after.model_copy(update={"rounds": 3})))  # a run that finished may have more rounds
    assert played(folder, "d").from_run == "c"


def test_a_fork_of_a_run_keeps_its_policy_and_rows_and_is_of_no_series(folder: Path) -> None:
    played(folder, "a")
    played(folder, "b")
    origin = read_config(folder / "runs/b")
    new = read_config(folder / "runs/b", ["run=f", "train.learning_rate=1e-3"])
    fork(origin, new, None)
    assert begun(read_config(new.folder)).policy == origin.policy
    assert [member.config.run for member in series.members(folder / "runs", "s")] == ["a", "b"]
    assert played(folder, "c").from_run == "b"


@pytest.mark.parametrize("on_overlap", ["skip", "queue"])
def test_no_two_runs_are_at_work_at_once(folder: Path, on_overlap: str) -> None:
    first = begun(loaded(folder, "a"))
    second = loaded(folder, "b", on_overlap=on_overlap)
    waited: list[str] = []

    def queue(reason: str) -> None:
        waited.append(reason)
        held.close()
        builders.played(first)

    held = ExitStack()
    held.enter_context(opened(first))
    if on_overlap == "skip":
        with pytest.raises(Skipped, match="b: not begun: a is still at work"), series.entered(second, queue=queue):
            pass
        assert not second.folder.exists()
        held.close()
        return
    with series.entered(second, due=NOW, queue=queue) as entered:
        assert entered.begun is not None
        assert entered.begun.from_run == "a"
    assert waited == ["b waits: a is still at work."]


def test_a_run_that_came_late_because_another_was_at_work_is_skipped_unless_it_queues(folder: Path) -> None:
    played(folder, "a")
    due = NOW - timedelta(hours=1)
    with pytest.raises(Skipped, match="a was at work after .* when it was due"):
        begun(loaded(folder, "b"), due)
    assert begun(loaded(folder, "b", on_overlap="queue"), due).begun is not None


def test_a_config_file_without_what_the_run_came_to_is_that_of_a_run_of_no_series(folder: Path) -> None:
    config = begun(loaded(folder, "a"))
    path = config.folder / "config.yaml"
    written = yaml.safe_load(path.read_text())
    del written["series"]["begun"]
    path.write_text(yaml.safe_dump(written))
    with pytest.raises(RunConflict, match="made with another config"):
        begun(loaded(folder, "a"))


def test_with_too_few_new_rows_no_run_begins_until_there_are_more(folder: Path) -> None:
    played(folder, "a", prompts=6)
    with pytest.raises(Skipped, match=r"has 1 rows after the 6 .* fewer than 3"):
        begun(loaded(folder, "b", at_least=3))
    write(folder, 9)
    assert window(begun(loaded(folder, "b", prompts=None, at_least=3))) == ["prompt 6", "prompt 7", "prompt 8"]


def test_a_file_whose_used_rows_changed_is_refused(folder: Path) -> None:
    played(folder, "a")
    lines = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join([*lines[:1], *lines[2:]]))
    with pytest.raises(BadInput, match=r"train\.jsonl: changed within its first 2 rows"):
        begun(loaded(folder, "b"))


def test_other_held_out_prompts_or_another_model_are_refused(folder: Path) -> None:
    played(folder, "a")
    with pytest.raises(BadInput, match=r"policy\.model: other/model, but the series `s` began from some/model"):
        begun(parse(raw(folder, "b") | {"policy": {"model": "other/model"}}, source="test"))
    fewer = raw(folder, "b")
    fewer["prompts"]["heldout_limit"] = 1
    with pytest.raises(BadInput, match=r"prompts\.heldout: are not those of a"):
        begun(parse(fewer, source="test"))
    builders.write_jsonl(folder / "heldout.jsonl", [{"prompt": "another"}])
    with pytest.raises(BadInput, match=r"prompts\.heldout: are not those of a"):
        begun(loaded(folder, "b"))


def test_an_earlier_run_that_is_gone_or_damaged_is_told(folder: Path) -> None:
    played(folder, "a")
    second = begun(loaded(folder, "b"))
    policy = folder / "runs/a/round-02/policy"
    (policy / "model.safetensors").write_text("damaged")
    for config in (second, loaded(folder, "c")):
        with pytest.raises(CorruptArtifact, match="the best policy of a is not what it was. Restore the folder of a"):
            begun(config)
    shutil.rmtree(policy)
    with pytest.raises(CorruptArtifact, match="the best policy of a is gone"):
        begun(loaded(folder, "c"))
    shutil.rmtree(folder / "runs/a")
    with pytest.raises(CorruptArtifact, match="the best policy of a is gone"):
        begun(second)
    shutil.rmtree(second.folder)
    assert played(folder, "c").from_run is None, "without its runs the series begins anew"


def test_a_window_that_changed_before_the_run_froze_it_is_told(folder: Path) -> None:
    config = begun(loaded(folder, "a"))
    (config.folder / series.WINDOW).write_text('{"prompt": "another"}\n')
    with pytest.raises(CorruptArtifact, match=r"window\.jsonl: is not what it was when a began"):
        begun(config)


def test_a_run_that_waits_for_an_answer_is_not_passed_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(loaded(folder, "a"))
    monkeypatch.setattr(series.Member, "awaits_answer", True)
    with pytest.raises(Skipped, match="a waits for a person's answer"):
        begun(loaded(folder, "b"))


def test_a_name_that_another_run_has_is_refused(folder: Path) -> None:
    builders.played(parse(builders.raw_config(folder) | {"run": "a"}, source="test"))
    with pytest.raises(RunConflict, match=r"series\.name: None there, 's' now"):
        begun(loaded(folder, "a"))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"train": "prompts.parquet"}, "name a JSONL file"),
        ({"train": {"dataset": "some/data"}}, "name a JSONL file"),
        ({"train_limit": 3}, "leave out prompts.train_limit"),
    ],
)
def test_prompts_that_have_no_windows_are_refused(folder: Path, changes: dict[str, Any], fault: str) -> None:
    config = raw(folder, "a")
    config["prompts"] |= changes
    with pytest.raises(BadInput, match=fault):
        parse(config, source="test")
