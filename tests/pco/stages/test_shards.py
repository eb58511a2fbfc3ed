"""Long stages work shard by shard: with an engine that is a fake, what is committed is never done again."""

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import store
from pco import progress
from pco.models.engine import Completion, Request
from pco.models.rendering import Rendered
from pco.progress import Progress
from pco.stage import Stage
from pco.stages import completions
from tests import builders

SAMPLES = 2


class FakeEngine:
    """Completes each request with its seed as the only token; can be told to fail at some request."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.asked: list[Request] = []
        self.expected: list[float] = []
        self._fails_at = fails_at

    def complete(
        self, requests: list[Request], _: Any, *, expected_tokens: float, on_done: Callable[[float], None]
    ) -> list[Completion]:
        self.expected.append(expected_tokens)
        for request in requests:
            if request.seed == self._fails_at:
                raise MemoryError
            self.asked.append(request)
            on_done(1)
        return [Completion(request, str(request.seed), [request.seed], -1.0, "stop") for request in requests]


def requests(count: int) -> list[Request]:
    return [Request(f"prompt {i // SAMPLES}", i % SAMPLES, Rendered("text", [1]), seed=i) for i in range(count)]


def shards(count: int, size: int) -> list[Sequence[Request]]:
    return completions.in_shards(requests(count), size)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return stage_in(tmp_path)


def stage_in(folder: Path) -> Stage:
    return builders.stage("generate", builders.config(folder), {"policy": builders.PRETEND})


@given(count=st.integers(0, 12), size=st.integers(1, 5))
def test_shards_are_the_requests_in_order(count: int, size: int) -> None:
    found = shards(count, size)
    assert list(chain.from_iterable(found)) == requests(count)
    assert all(0 < len(shard) <= size for shard in found)


@given(fails_at=st.integers(0, 9), size=st.integers(1, 5))
def test_a_stage_that_fails_anywhere_and_is_resumed_commits_the_same_and_asks_for_no_committed_shard_again(
    tmp_path_factory: pytest.TempPathFactory, fails_at: int, size: int
) -> None:
    broken, whole = (stage_in(tmp_path_factory.mktemp("shards")) for _ in range(2))
    completions.complete_shards(whole, shards(10, size), FakeEngine)
    with pytest.raises(MemoryError):
        completions.complete_shards(broken, shards(10, size), lambda: FakeEngine(fails_at))
    committed = len(list(broken.folder.glob("*.parquet")))
    assert committed == fails_at // size
    second = FakeEngine()
    completions.complete_shards(broken, shards(10, size), lambda: second)
    assert [request.seed for request in second.asked] == list(range(committed * size, 10))
    for path in whole.folder.glob("*.parquet"):
        assert (broken.folder / path.name).read_bytes() == path.read_bytes()


def test_a_lost_shard_in_the_middle_is_the_only_one_made_again(stage: Stage) -> None:
    completions.complete_shards(stage, shards(6, 2), FakeEngine)
    store.part_path(stage.folder, "candidates", 1).unlink()
    engine = FakeEngine()
    completions.complete_shards(stage, shards(6, 2), lambda: engine)
    assert [request.seed for request in engine.asked] == [2, 3]


def test_no_engine_starts_when_all_shards_are_there(stage: Stage) -> None:
    completions.complete_shards(stage, shards(4, 2), FakeEngine)

    def start() -> Any:
        raise AssertionError("started")

    assert completions.complete_shards(stage, shards(4, 2), start) == {}
    assert completions.complete_shards(stage, [], start) == {}


def test_shards_of_another_attempt_are_made_again(stage: Stage) -> None:
    completions.complete_shards(stage, shards(4, 2), FakeEngine)
    other = builders.stage("generate", builders.changed(stage.config, seed=1), dict(stage.inputs))
    engine = FakeEngine()
    completions.complete_shards(other, shards(4, 2), lambda: engine)
    assert len(engine.asked) == 4


def test_progress_counts_what_was_committed_before(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Progress] = []
    monkeypatch.setattr(progress, "report", told.append)
    with pytest.raises(MemoryError):
        completions.complete_shards(stage, shards(6, 2), lambda: FakeEngine(fails_at=4))
    completions.complete_shards(stage, shards(6, 2), FakeEngine)
    assert [(event.done, event.total) for event in told] == [(done, 6) for done in (0, 1, 2, 3, 4, 4, 5, 6)]


def test_a_row_holds_the_request_and_what_became_of_it(stage: Stage) -> None:
    completions.complete_shards(stage, shards(1, 2), FakeEngine)
    assert store.read_parts(stage.folder, "candidates").to_pylist() == [
        {
            "prompt_id": "prompt 0",
            "mode": "sampled",
            "sample": 0,
            "prompt": "text",
            "prompt_token_ids": [1],
            "completion": "0",
            "token_ids": [0],
            "logprob": -1.0,
            "finish_reason": "stop",
            "seed": 0,
            "policy": builders.PRETEND.fingerprint,
        }
    ]


def test_completions_are_expected_as_long_as_those_before_or_in_the_last_evaluation_or_as_they_may_be(
    stage: Stage,
) -> None:
    first, second = FakeEngine(), FakeEngine()
    completions.complete_shards(stage, shards(6, 2), lambda: first)
    assert first.expected == [stage.config.generate.max_tokens, 1.0, 1.0]  # the fake's completions are of one token
    evaluation = builders.stage("evaluate", builders.changed(stage.config, run="measured"), number=0)
    account = {"unit": "completions", "rows_in": 0, "rows_out": 0, "dropped": {}, "started": 0.0}
    evaluation.finish(**account, metrics={"length": 7.5})
    measured = builders.stage("generate", evaluation.config, {"policy": builders.PRETEND})
    completions.complete_shards(measured, shards(6, 3), lambda: second)
    assert second.expected == [7.5, 1.0]
