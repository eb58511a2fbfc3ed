"""How shards are handed to workers, whatever these are: the crew here is played, with every order and every death."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import schemas
from data.errors import BadInput, StageFailed
from pco import progress
from pco.execution import at_work
from pco.execution.driver import TRIES, Driver
from pco.execution.messages import Did, Ended, Event, Failed, Made, Task
from pco.progress import Failure, Progress
from pco.sharding import OnDone, Shard, ShardedTable, in_order
from pco.stage import Stage
from tests import builders

FATES = ("made", "dies before", "dies after")  # of a shard at a worker: the last two around its commit


class Played:
    """A crew whose workers do at each look what the plan says next; all is made once the plan is through."""

    def __init__(self, stage: Stage, table: ShardedTable, plan: list[tuple[int, str]]) -> None:
        self.stage, self.table, self._plan = stage, table, iter(plan)
        self.tasks: dict[int, Task | None] = {}
        self.made, self.deaths = Counter[int](), Counter[int]()
        self.most = 0

    def start(self, worker: int) -> None:
        assert worker not in self.tasks, "a worker that lives is not started again"
        self.tasks[worker] = None
        self.most = max(self.most, len(self.tasks))

    def give(self, worker: int, task: Task) -> None:
        assert self.tasks[worker] is None, "a worker has one shard at work"
        self.tasks[worker] = task

    def end(self, worker: int) -> None:
        del self.tasks[worker]

    def events(self, _: float) -> Iterator[tuple[int, Event]]:
        busy = [worker for worker, task in self.tasks.items() if task is not None]
        number, fate = next(self._plan, (0, "made"))
        worker = busy[number % len(busy)]
        task = self.tasks[worker]
        assert task is not None
        yield worker, Did(1)
        if fate != "dies before" and not self.stage.is_made(task.table, task.shard):
            self.made[task.shard] += 1
            self.stage.commit(self.table, task.shard, self.table.make(task.shard, lambda _: None))
        if fate == "made":
            self.tasks[worker] = None
            yield worker, Made({"tokens": 3.0})
        else:
            self.deaths[task.shard] += 1
            del self.tasks[worker]
            yield worker, Ended("it died", "last words")


def table_of(sizes: list[int]) -> ShardedTable:
    def make(index: int, _: OnDone) -> Shard:
        rows = [builders.score_row(f"prompt {index}", sample, index / 7) for sample in range(sizes[index])]
        return Shard(schemas.build("scores", rows), dropped={"why": index}, counts={"calls": 0.5})

    return ShardedTable("scores", sizes, make, unit="candidates")


def stage_in(folder: Path) -> Stage:
    return builders.stage("score", builders.config(folder))


def parts(stage: Stage) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in stage.folder.iterdir()}


@settings(max_examples=30)
@given(
    sizes=st.lists(st.integers(1, 3), max_size=6),
    workers=st.integers(1, 4),
    on_disk=st.sets(st.integers(0, 5)),
    plan=st.lists(st.tuples(st.integers(0, 3), st.sampled_from(FATES)), max_size=8),
    alone=st.booleans(),
)
def test_whatever_the_order_and_whoever_dies_every_shard_is_made_once_with_the_bytes_of_one_process(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    workers: int,
    on_disk: set[int],
    plan: list[tuple[int, str]],
    alone: bool,
) -> None:
    local, shared = (stage_in(tmp_path_factory.mktemp("run")) for _ in range(2))
    table = replace(table_of(sizes), alone=alone)
    assert [done.index for done in in_order(local, table)] == list(range(len(sizes)))
    for index in on_disk & set(range(len(sizes))):
        shared.commit(table, index, table.make(index, lambda _: None))
    missing = shared.missing(table)
    crew = Played(shared, table, plan)
    told: list[Progress] = []
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(progress, "report", told.append)
            done = [item.index for item in Driver(crew, workers)(shared, table)]
    except StageFailed:
        assert max(crew.deaths.values()) == TRIES
        return
    assert max(crew.deaths.values(), default=0) < TRIES
    assert sorted(done) == list(range(len(sizes)))
    assert crew.made == Counter(missing)
    assert crew.most <= (1 if alone else workers)
    if sizes:
        assert parts(local) == parts(shared)
    assert all(event.done <= event.total == sum(sizes) for event in told)
    if missing:
        assert told[-1].done == sum(sizes)


def test_a_shard_that_ends_its_worker_every_time_fails_the_stage_and_keeps_the_others(tmp_path: Path) -> None:
    stage, table = stage_in(tmp_path), table_of([1, 1])
    crew = Played(stage, table, [(1, "made"), *[(0, "dies before")] * TRIES])
    with pytest.raises(StageFailed) as caught:
        list(Driver(crew, 2)(stage, table))
    assert str(caught.value).startswith("round 1/2 · score: shard 0 of `scores` ended its worker 3 times")
    assert "it died" in str(caught.value) and "last words" in str(caught.value)
    assert stage.missing(table) == [0]


def test_an_error_of_ours_is_raised_at_once_as_itself(tmp_path: Path) -> None:
    stage, table = stage_in(tmp_path), table_of([1, 1])

    class Refusing(Played):
        def events(self, _: float) -> Iterator[tuple[int, Event]]:
            yield 1, Failed(Failure.of(BadInput("no such column")))

    crew = Refusing(stage, table, [])
    with pytest.raises(BadInput, match="^no such column$"):
        list(Driver(crew, 2)(stage, table))
    assert crew.made == {}


def test_workers_stay_for_the_next_table_and_those_without_a_shard_there_are_ended(tmp_path: Path) -> None:
    stage, table = stage_in(tmp_path), table_of([1] * 4)
    crew = Played(stage, table, [])
    driver = Driver(crew, 3)
    list(driver(stage, table))
    assert sorted(crew.tasks) == [0, 1, 2]
    (stage.folder / "scores-00002.parquet").unlink()
    list(driver(stage, table))
    assert sorted(crew.tasks) == [0]


def test_the_units_of_a_shard_that_was_lost_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, table = stage_in(tmp_path), table_of([3, 3])
    told: list[Any] = []
    monkeypatch.setattr(progress, "report", told.append)
    list(Driver(Played(stage, table, [(0, "dies before"), (0, "made")]), 1)(stage, table))
    assert [(event.done, event.total, event.note) for event in told] == [(done, 6, "1 worker") for done in (1, 3, 4, 6)]


def test_what_workers_are_at_can_be_read_while_they_work_and_is_gone_afterwards(tmp_path: Path) -> None:
    stage, table = stage_in(tmp_path), table_of([1] * 5)
    seen: list[str] = []

    class Looking(Played):
        def events(self, timeout_s: float) -> Iterator[tuple[int, Event]]:
            seen.extend(map(str, at_work.read(stage)))
            yield from super().events(timeout_s)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(at_work, "_WRITE_EVERY_S", 0.0)
        list(Driver(Looking(stage, table, []), 2)(stage, table))
    assert "worker 0: shard 0" in seen and "worker 1: shard 1" in seen
    assert any("tokens/s" in line for line in seen)
    assert at_work.read(stage) == []
