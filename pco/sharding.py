"""Tables that a stage makes in shards: what a shard is, who makes it, and how progress is told."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from pco import progress
from pco.progress import Progress

if TYPE_CHECKING:
    from pco.stage import Stage


@dataclass(frozen=True)
class Shard:
    """One part of a table that is made in parts, and what was left out of it or counted while it was made.

    `measured` holds what depends on this attempt, such as seconds; it is not kept with the part.
    """

    content: pa.Table
    dropped: Mapping[str, int] = field(default_factory=dict)
    counts: Mapping[str, float] = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)


OnDone = Callable[[float], None]
"""Is told how many more units of a shard are done; a unit may be done in part."""


@dataclass(frozen=True)
class ShardedTable:
    """A table that a stage makes in shards."""

    name: str
    sizes: Sequence[int]
    """How many units each shard has: they measure progress."""
    make: Callable[[int, OnDone], Shard]
    """Makes one shard; tells how far it is where that takes long."""
    unit: str = ""
    """What the sizes count; without it no progress is reported."""
    alone: bool = False
    """Whether one process makes all shards whatever the executor, since they share what processes cannot."""


@dataclass(frozen=True)
class Done:
    """A shard that is on disk; `measured` is empty if an earlier attempt made it."""

    index: int
    measured: Mapping[str, float] = field(default_factory=dict)


class Span:
    """The time from the beginning of the first shard that is made to the end of the last one."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._ended: float | None = None

    def ended(self, seconds: float) -> None:
        """A shard has just ended that took so many seconds."""
        self._ended = time.monotonic()
        began = self._ended - seconds
        self._began = began if self._began is None else min(self._began, began)

    @property
    def seconds(self) -> float:
        """0 before any shard has ended."""
        return 0.0 if self._began is None or self._ended is None else self._ended - self._began


class Sharding(Protocol):
    """Makes sure that all shards of a table are on disk, and yields each."""

    def __call__(self, stage: "Stage[Any]", table: ShardedTable) -> Iterator[Done]: ...


class Tally:
    """Reports a table's progress: the units of shards on disk, and those that are done of shards at work."""

    def __init__(self, table: ShardedTable, missing: Collection[int], note: str = "") -> None:
        self._table, self._note = table, note
        self._total = sum(table.sizes)
        self._on_disk = self._total - sum(table.sizes[index] for index in missing)
        self._at_work: dict[int, float] = {}
        self._reported = -1.0

    def did(self, index: int, units: float) -> None:
        """So many more units of a shard are done."""
        self._at_work[index] = self._at_work.get(index, 0) + units
        self._report()

    def lost(self, index: int) -> None:
        """What was done of a shard is lost."""
        self._at_work.pop(index, None)

    def committed(self, index: int) -> None:
        """A shard is on disk."""
        self._at_work.pop(index, None)
        self._on_disk += self._table.sizes[index]
        self._report()

    def of(self, index: int) -> float:
        """How many units of a shard at work are done."""
        return self._at_work.get(index, 0)

    def _report(self) -> None:
        done = self._on_disk + sum(self._at_work.values())
        if self._table.unit and done != self._reported:
            self._reported = done
            progress.report(Progress(done, self._total, self._table.unit, self._note))


def in_order(stage: "Stage[Any]", table: ShardedTable) -> Iterator[Done]:
    """Make the missing shards in this process, one after the other; yields all in order."""
    missing = set(stage.missing(table))
    tally = Tally(table, missing)
    for index in range(len(table.sizes)):
        if index not in missing:
            yield Done(index)
            continue
        shard = table.make(index, partial(tally.did, index))
        stage.commit(table, index, shard)
        tally.committed(index)
        yield Done(index, shard.measured)
