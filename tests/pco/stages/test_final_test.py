"""The test prompts: frozen apart, and answered by two policies, with a pretended engine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data import store
from data.errors import BadInput
from pco.evaluation import looks
from pco.report import wording
from pco.report.numbers import FinalTest
from pco.rounds import State, inputs_of
from pco.stage import Stage
from pco.stages import evaluate, prepare_test, test, test_start
from tests import builders
from tests.fake_sampler import FakeSampler

TEXTS = [f"test {i}" for i in range(5)]
REWARD = {"kind": "length", "max_tokens": 3}  # the longer, the worse


@pytest.fixture
def frozen(tmp_path: Path, tiny: Path) -> Callable[..., Stage]:
    """The stage that froze the test prompts of a run."""

    def run(name: str = "test", prompts: list[str] = TEXTS, **settings: Any) -> Stage:
        builders.write_prompts(tmp_path, ["Train me"], ["Held out"])
        path = builders.write_jsonl(tmp_path / "test.jsonl", [{"prompt": text} for text in prompts])
        raw = {"policy__prompt_format": "raw", "generate__max_tokens": 4, "reward": REWARD, **settings}
        config = builders.config(tmp_path, tiny, run=name, prompts__test=str(path), **raw)
        rows = [builders.prompt_row("Train me"), builders.prompt_row("Held out", "heldout")]
        made = builders.finished(tmp_path / "prepared", {"prompts": rows})
        inputs = inputs_of("prepare_test", config, State(made={"prepare": made}))
        stage = Stage("prepare_test", 0, config, inputs)
        prepare_test.run(stage)
        return stage

    return run


def start_of(prepared: Stage, tiny: Path) -> Stage:
    inputs = {"policy": builders.model(tiny), "prompts": builders.result(prepared)}
    return Stage("test_start", 2, prepared.config, inputs)


def best_of(start: Stage) -> Stage:
    return Stage("test", 2, start.config, {**start.inputs, "start": builders.result(start)})


class Dying(FakeSampler):
    """Dies at its second shard."""

    left = 1

    def complete(self, *arguments: Any, **options: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise MemoryError
        return super().complete(*arguments, **options)


def both_tested(monkeypatch: pytest.MonkeyPatch, prepared: Stage, tiny: Path, *, dies: bool = False) -> Stage:
    """Both stages, the start writing 4 tokens and the best policy 2."""
    monkeypatch.setattr(evaluate, "Sampler", lambda *_: FakeSampler(4))
    start = start_of(prepared, tiny)
    test_start.run(start)
    best = best_of(start)
    if dies:
        monkeypatch.setattr(evaluate, "Sampler", lambda *_: Dying(2))
        with pytest.raises(MemoryError):
            test.run(best)
        assert store.read_manifest(best.folder) is None
        assert len(looks.read(best.config.folder)) == 1  # what was begun is counted
    monkeypatch.setattr(evaluate, "Sampler", lambda *_: FakeSampler(2))
    test.run(best)
    return best


def rows(stage: Stage) -> dict[str, Any]:
    return {row["metric"]: row for row in store.read_table(stage.folder, "tests").to_pylist()}


def test_both_policies_answer_the_test_prompts_and_the_difference_is_kept(
    frozen: Callable[..., Stage], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = both_tested(monkeypatch, frozen(), tiny)
    found = rows(stage)
    assert found["length"] | {"metric": ""} == {
        "metric": "",
        "prompts": 5,
        "start": 4.0,
        "best": 2.0,
        "difference": -2.0,
        "low": -2.0,
        "high": -2.0,
    }
    assert (found["win_vs_start"]["best"], found["win_vs_start"]["difference"]) == (1.0, 0.5)
    assert (found["kl"]["start"], found["kl"]["prompts"]) == (0.0, 5)
    assert found["distinct_1"]["low"] is None
    assert not {"perplexity", "drift", "win_vs_previous"} & found.keys()
    answered = store.read_table(stage.folder, "candidates").column("prompt_id").to_pylist()
    assert set(answered) == {builders.prompt_row(text)["prompt_id"] for text in TEXTS}
    assert len(looks.read(stage.config.folder)) == 1


def test_a_test_that_dies_and_goes_on_equals_one_left_alone_and_is_one_look(
    frozen: Callable[..., Stage], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = frozen(generate__shard_size=2)
    whole = both_tested(monkeypatch, prepared, tiny)
    parts = {path.name: path.read_bytes() for path in whole.folder.glob("*.parquet")}
    for folder in (whole.folder, start_of(prepared, tiny).folder):
        for path in folder.iterdir():
            path.unlink()
    (whole.config.folder / looks.FILE).unlink()
    resumed = both_tested(monkeypatch, prepared, tiny, dies=True)
    assert {path.name: path.read_bytes() for path in resumed.folder.glob("*.parquet")} == parts
    assert len(looks.read(resumed.config.folder)) == 1


@pytest.mark.parametrize("size", [1, 2, 64])
def test_the_number_of_shards_changes_no_difference(
    frozen: Callable[..., Stage], tiny: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    expected = rows(both_tested(monkeypatch, frozen("whole", generate__shard_size=64), tiny))
    assert rows(both_tested(monkeypatch, frozen("parts", generate__shard_size=size), tiny)) == expected


@pytest.mark.parametrize(
    ("prompt", "told"), [("train  ME", "is also trained on"), ("held out", "is also held out"), ("x " * 999, "999")]
)
def test_a_test_prompt_that_is_known_or_too_long_is_refused(
    frozen: Callable[..., Stage], prompt: str, told: str
) -> None:
    with pytest.raises(BadInput, match=told):
        frozen(prompts=["fine", prompt])


def test_a_test_prompt_without_what_the_reward_needs_is_refused(frozen: Callable[..., Stage]) -> None:
    with pytest.raises(BadInput, match=r"test\.jsonl.*no `reference`"):
        frozen(reward={"kind": "exact_answer", "pattern": "(z)"})


def test_a_test_set_that_is_gone_counts_as_unchanged_once_it_is_frozen(frozen: Callable[..., Stage]) -> None:
    prepared = frozen()
    Path(prepared.config.prompts.test or "").unlink()
    state = State(made={"prepare": prepared.inputs["prompts"]})
    assert inputs_of("prepare_test", prepared.config, state) == prepared.inputs


def test_the_headline_is_the_difference_by_the_metrics_of_the_gate(
    frozen: Callable[..., Stage], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = both_tested(monkeypatch, frozen(), tiny)
    found = list(rows(stage).values())
    told = wording.test_result(stage.config, FinalTest(found, 2, is_of_best=True, looks=2))
    assert told.startswith("on 5 test prompts (looked at 2 times), round 2's policy less the start: reward +")
    assert "length −2.000 (95 % interval −2.000 to −2.000)" in told and "repetition" in told
    assert "win" not in told and "perplexity" not in told
    assert wording.test_result(stage.config, FinalTest(found, 1, is_of_best=False, looks=1)) == ""
