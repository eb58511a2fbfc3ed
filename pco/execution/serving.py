"""The worker's side: the stage runs as ever, but makes only the shards that its driver names."""

import os
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from pco.execution import messages
from pco.execution.messages import Did, Failed, Made, Message, Task
from pco.progress import Failure
from pco.sharding import Done, ShardedTable
from pco.stage import Stage

_DID_EVERY_S = 0.2


class Serving:
    """The sharding of a stage in a worker. It ends the process once the driver has no more shards, or is gone.

    So no worker ever comes to what follows a stage's tables: the manifest is the driver's.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._task: Task | None = None

    def __call__(self, stage: Stage[Any], table: ShardedTable) -> Iterator[Done]:
        """Make the shards that the driver names, until it names one of another table."""
        while (task := self._told()).table == table.name:
            measured = {}
            if not stage.is_made(table.name, task.shard):  # or its last worker died after it was on disk
                shard = table.make(task.shard, _Teller(self))
                stage.commit(table, task.shard, shard)
                measured = dict(shard.measured)
            self._task = None
            self.say(Made(measured))
            yield Done(task.shard, measured)

    def _told(self) -> Task:
        if self._task is None:
            try:
                self._task = messages.task(self._connection.recv_bytes())
            except (EOFError, OSError):
                _leave()
        return self._task

    def say(self, message: Message) -> None:
        """Tell the driver."""
        try:
            self._connection.send_bytes(messages.encoded(message))
        except OSError:
            _leave()

    def fail(self, failure: Failure) -> None:
        """Tell the driver of an error that ends this process."""
        self.say(Failed(failure))


class _Teller:
    """Tells the driver how far a shard is, a few times a second."""

    def __init__(self, serving: Serving) -> None:
        self._serving, self._units, self._last = serving, 0.0, 0.0

    def __call__(self, units: float) -> None:
        self._units += units
        if time.monotonic() - self._last > _DID_EVERY_S:
            self._serving.say(Did(self._units))
            self._units, self._last = 0.0, time.monotonic()


def _leave() -> NoReturn:
    """All is on disk. Taking an engine apart object by object would cost seconds for nothing."""
    sys.stdout.flush()
    os._exit(0)
