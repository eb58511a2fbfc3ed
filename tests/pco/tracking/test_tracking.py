"""What trackers are told, and that each part is told once, whatever fails in between."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data import store
from data.errors import BadInput, PCOError
from pco import tracking
from pco.config.run import RunConfig
from pco.runs.folder import check_same, read_config
from pco.runs.status import points
from pco.stage import Stage
from pco.tracking import facts, to_tensorboard
from pco.tracking.facts import Part
from pco.tracking.tracked import Tracked
from tests import made_before

Send = Callable[[Tracked, list[Part], Callable[[Part], None]], None]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A finished run of two rounds."""
    return read_config(made_before.runs(tmp_path) / "finished")


def told(config: RunConfig, monkeypatch: pytest.MonkeyPatch, *, breaks_after: int | None = None) -> list[Part]:
    """The parts that a tracker is told, which may break off."""
    heard: list[Part] = []

    def send(_: Tracked, parts: list[Part], note: Callable[[Part], None]) -> None:
        for part in parts:
            if len(heard) == breaks_after:
                raise ConnectionError("the server is gone\nand more")
            heard.append(part)
            note(part)

    monkeypatch.setattr(to_tensorboard, "send", send)
    monkeypatch.setattr("pco.tracking.tracked.check_installed", lambda _: None)
    if breaks_after is None:
        assert tracking.sync(config, "tensorboard") == len(heard)
    else:
        with pytest.raises(PCOError, match=r"told: the server is gone\. `pco track finished`"):
            tracking.sync(config, "tensorboard")
    return heard


def test_every_finished_stage_is_a_part_with_its_metrics_and_tables(config: RunConfig) -> None:
    parts = {part.key: part for part in facts.parts(config)}
    assert list(parts) == [f"round-{number:02}/{name}" for number, name in points(config)]
    log = store.read_table(Stage("train", 2, config).folder, "train_log").to_pylist()
    losses = [point for point in parts["round-02/train"].steps if point.name == "train/loss"]
    assert [(point.step, point.value) for point in losses] == [(row["step"], row["loss"]) for row in log]
    times = [point.time for point in losses]
    assert times == sorted(times)
    evaluated = store.read_manifest(Stage("evaluate", 1, config).folder)
    assert evaluated is not None
    values = {point.name: point.value for point in parts["round-01/evaluate"].values}
    assert values["eval/reward_greedy"] == evaluated.metrics["reward/greedy"]
    assert values["cost/evaluate/seconds"] == evaluated.seconds
    assert {point.step for point in parts["round-02/decide"].values} == {2}
    assert {"gate/promoted", "gate/reward_change/low"} <= {point.name for point in parts["round-02/decide"].values}
    assert [path.name for path in parts["round-01/train"].files] == ["train_log-00000.parquet"]


def test_tables_too_large_to_upload_stay_where_they_are(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "LARGEST", 10)
    assert {part.files for part in facts.parts(config)} == {()}


@pytest.mark.parametrize("breaks_after", [0, 1, 7])
def test_what_a_broken_connection_left_untold_is_told_by_the_next_call_and_nothing_twice(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, breaks_after: int
) -> None:
    first = told(config, monkeypatch, breaks_after=breaks_after)
    second = told(config, monkeypatch)
    assert len(first) == breaks_after
    assert first + second == list(facts.parts(config))
    assert told(config, monkeypatch) == []


def test_a_stage_that_was_made_anew_is_told_again(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    told(config, monkeypatch)
    folder = Stage("train", 1, config).folder
    manifest = folder / "manifest.json"
    made = store.read_manifest(folder)
    assert made is not None
    manifest.write_text(manifest.read_text().replace(made.fingerprint, "f" * len(made.fingerprint)))
    anew = told(config, monkeypatch)
    assert [(part.key, part.fingerprint) for part in anew] == [("round-01/train", "f" * len(made.fingerprint))]


def test_trackers_may_change_between_two_attempts_at_a_run_and_fingerprints_stay(config: RunConfig) -> None:
    followed = config.model_copy(update={"track": ["mlflow"]})
    check_same(followed)
    before, after = (Stage("train", 1, each).fingerprint for each in (config, followed))
    assert before == after


def test_a_tracker_that_is_not_installed_is_refused_before_the_run(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with (
        pytest.raises(BadInput, match=r"track: not installed: mlflow-skinny\. `pip install mlflow-skinny`"),
        tracking.following(config.model_copy(update={"track": ["mlflow"]}), print),
    ):
        pytest.fail("the run began")


def test_a_run_without_trackers_starts_no_process_for_them(config: RunConfig) -> None:
    def do(stage: Stage) -> store.Manifest:
        raise NotImplementedError(stage)

    with tracking.following(config, print) as after:
        assert after(do) is do
    assert not (config.folder / "tracking").exists()
