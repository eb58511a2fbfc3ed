"""Workers on this machine, each a child of the stage's process, with a group of GPUs or a share of cores."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing import connection as connections
from multiprocessing.connection import Connection
from typing import Any, Self

from pco.execution import at_work, messages, process_group
from pco.execution.messages import Ended, Event, Task
from pco.execution.shares import Share
from pco.stage import PARENT, Stage

CORES = "PCO_CORES"  # in a worker's environment: the cores that it is held to
OPTION = "--worker"  # of the program of stage processes; the number of the connection's file follows
_GRACE_S = 5.0
_LOOK_S = 0.5  # between two looks whether a worker lives: what it started may hold its connection open
RELAY_S = 10.0  # between two lines of a worker's log that its driver repeats
_PROGRAM = ("-m", "pco.execution.worker_main")


class Pool:
    """A crew of child processes. They are in the stage's process group, and die with the process that started them."""

    def __init__(self, stage: Stage[Any], shares: Mapping[int, Share], program: Sequence[str] = _PROGRAM) -> None:
        self._stage, self._shares, self._program = stage, shares, program
        self._workers: dict[int, _Worker] = {}
        # Well before the launcher takes the stage for one that hangs.
        self._relay_s = min(RELAY_S, stage.config.stall_timeout_s / 4)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for number in list(self._workers):
            self.end(number)

    def start(self, worker: int) -> None:
        """As `Crew.start`."""
        self._workers[worker] = _started(self._stage, worker, self._shares[worker], self._program)

    def give(self, worker: int, task: Task) -> None:
        """As `Crew.give`."""
        with suppress(OSError):
            self._workers[worker].connection.send_bytes(messages.encoded(task))

    def events(self, timeout_s: float) -> Iterator[tuple[int, Event]]:
        """As `Crew.events`."""
        connections.wait([worker.connection for worker in self._workers.values()], min(timeout_s, _LOOK_S))
        for number, worker in list(self._workers.items()):
            for event in worker.said():
                if isinstance(event, Ended):
                    self.end(number)
                yield number, event
            if line := worker.log.news(self._relay_s):
                print(f"worker {number}: {line}", flush=True)

    def end(self, worker: int) -> None:
        """As `Crew.end`."""
        self._workers.pop(worker).end()


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    log: at_work.Follower
    mark: str

    def said(self) -> Iterator[Event]:
        """What it has said since the last time; the last event of one that is dead is its end."""
        ended = self.process.poll() is not None  # asked first: all that it said before is there by now
        try:
            while self.connection.poll():
                yield messages.event(self.connection.recv_bytes())
        except (EOFError, OSError):
            ended = True
        if ended:
            yield Ended(process_group.cause(self._returncode()), self.log.tail())

    def _returncode(self) -> int:
        try:
            return self.process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def end(self) -> None:
        """Whatever it was at is on disk or lost. What it started ends, too: that may hold a GPU's memory."""
        self.process.kill()
        self.process.wait()
        self.connection.close()
        process_group.end_leftovers_of_worker(self.mark)


def _started(stage: Stage[Any], worker: int, share: Share, program: Sequence[str]) -> _Worker:
    ours, theirs = Pipe()
    log, mark = at_work.log_file(stage, worker), f"{stage.stage_file}:{worker}"
    environment = {**os.environ, **share.environment, PARENT: str(os.getpid()), process_group.WORKER: mark}
    environment[CORES] = ",".join(map(str, share.cores))
    command = [sys.executable, *program, OPTION, str(theirs.fileno()), str(stage.stage_file)]
    with theirs, log.open("ab") as output:
        output.write(f"==== worker {worker} at {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
        output.flush()
        follower = at_work.Follower(log)
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs.fileno()],
            env=environment,
        )
    return _Worker(process, ours, follower, mark)
