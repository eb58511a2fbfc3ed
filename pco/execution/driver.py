"""The driver's side: a stage whose shards are made by workers, wherever these are.

The missing shards of a table wait in a queue, and each worker has one at work. The number of a shard travels, and what
was measured while it was made; its rows go from the worker to the disk. Only the driver reports progress and writes the
manifest.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from data import files
from data.errors import StageFailed
from pco.execution import at_work
from pco.execution.at_work import Board
from pco.execution.messages import Did, Ended, Event, Failed, Made, Task
from pco.sharding import Done, ShardedTable, Tally
from pco.stage import Stage

TRIES = 3  # of a shard, each of which ended its worker
_WAIT_S = 0.5


class Crew(Protocol):
    """Workers by their numbers, each a process that can die."""

    def start(self, worker: int) -> None:
        """Start a worker; it is told what to do by `give`."""

    def give(self, worker: int, task: Task) -> None:
        """Tell a worker which shard to make. One that has just died is told of by `events`."""

    def events(self, timeout_s: float) -> Iterable[tuple[int, Event]]:
        """What workers have said, each worker's in order; waits for the first word at most so long."""

    def end(self, worker: int) -> None:
        """End a worker with all that it started."""


class Driver:
    """The sharding of a stage whose shards are made by a crew. Workers start with the first shard that is missing."""

    def __init__(self, crew: Crew, workers: int) -> None:
        self._crew, self._workers = crew, workers
        self._started: set[int] = set()

    def __call__(self, stage: Stage[Any], table: ShardedTable) -> Iterator[Done]:
        """Have the missing shards made; yields those on disk first, then each as it is made.

        Raises the error of a shard that cannot be made, and StageFailed for one that ends its worker every time.
        """
        missing = stage.missing(table)
        yield from map(Done, sorted(set(range(len(table.sizes))).difference(missing)))
        if missing:
            yield from self._made(stage, table, missing)

    def _made(self, stage: Stage[Any], table: ShardedTable, missing: list[int]) -> Iterator[Done]:
        workers = min(1 if table.alone else self._workers, len(missing))
        for worker in sorted(self._started - set(range(workers))):
            self._end(worker)  # it would hold memory for nothing
        waiting, given, tries = deque(missing), dict[int, int](), Counter[int]()
        tally = Tally(table, missing, f"{workers} worker{'s' if workers > 1 else ''}")
        board = Board(stage, table.unit)

        def give(worker: int, shard: int) -> None:
            if worker not in self._started:
                self._crew.start(worker)
                self._started.add(worker)
            given[worker] = shard
            board.begins(worker, shard)
            self._crew.give(worker, Task(table.name, shard))

        for worker in range(workers):
            give(worker, waiting.popleft())
        while given:
            board.write()
            for worker, event in self._crew.events(_WAIT_S):
                if isinstance(event, Ended):
                    self._started.discard(worker)
                if worker not in given:
                    continue
                shard = given[worker]
                match event:
                    case Did(units):
                        tally.did(shard, units)
                    case Failed(failure):
                        raise failure.error
                    case Made(measured):
                        del given[worker]
                        board.made(worker, table.sizes[shard], measured.get("tokens"))
                        if waiting:
                            give(worker, waiting.popleft())
                        tally.committed(shard)
                        yield Done(shard, measured)
                    case Ended():
                        tally.lost(shard)
                        tries[shard] += 1
                        _check(stage, table, shard, tries[shard], worker, event)
                        give(worker, shard)
        files.sweep(stage.folder)  # what dead workers left half written
        at_work.path(stage).unlink(missing_ok=True)

    def _end(self, worker: int) -> None:
        self._crew.end(worker)
        self._started.discard(worker)


def _check(stage: Stage[Any], table: ShardedTable, shard: int, tries: int, worker: int, end: Ended) -> None:
    """Say that a worker ended; raise StageFailed if it is not worth another try."""
    what = f"shard {shard} of `{table.name}`"
    if tries == TRIES:
        raise StageFailed(
            f"{stage.title}: {what} ended its worker {TRIES} times; the last time {end.how}. The other shards on disk "
            f"are kept.\n{end.tail}".rstrip()
        )
    print(f"worker {worker}: {end.how}, at {what}; starting it again (try {tries + 1} of {TRIES})", flush=True)
