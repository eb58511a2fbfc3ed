"""Workers on a Ray cluster: each an actor, which supervises the worker's process on its machine.

The run's folder must be the same path on every machine: parts are written there by workers, and only numbers of shards
go through Ray. Imported only by stage processes whose config asks for Ray.
"""

import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Self

import ray
from ray.exceptions import RayError

from data.errors import BadInput, StageFailed
from pco.execution import at_work, pool
from pco.execution.messages import Did, Ended, Event, Task
from pco.execution.room import Room, room
from pco.execution.shares import Share
from pco.stage import Stage

_START_S = float(os.environ.get("PCO_RAY_START_S", "120"))  # an actor without room waits silently, and for ever
_CONNECT_S = 10.0
# What the driver's environment says to its workers. Keys and passwords are read from the environment of each machine.
_PASSED = ("PYTHON", "VLLM_", "HF_HUB_OFFLINE", "TOKENIZERS_", "GOMP_", "OMP_", "TORCHDYNAMO_", "PCO_", "NO_PROXY")


class RayCrew:
    """A crew of actors. They end with the process that made them, however it ends."""

    def __init__(self, stage: Stage[Any]) -> None:
        self._stage = stage
        self._text = stage.to_json()
        self._actors: dict[int, _Actor] = {}
        self._room = Room(0, 0)

    def __enter__(self) -> Self:
        address = self._stage.config.executor.address
        try:
            _look_for(address)
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (OSError, RuntimeError, ValueError) as error:
            raise BadInput(
                f"executor.address: no Ray cluster answers at {address} ({_reason(error)}). "
                "Start a node on this machine, `ray start --head` or `ray start --address=HEAD:6379`."
            ) from error
        self._room = room(self._stage.config, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        return self

    def __exit__(self, *_: object) -> None:
        for worker in list(self._actors):
            self.end(worker)
        ray.shutdown()

    def start(self, worker: int) -> None:
        """As `Crew.start`."""
        environment = {name: value for name, value in os.environ.items() if name.startswith(_PASSED)}
        options = {"num_cpus": self._room.cores, "num_gpus": self._room.gpus, "scheduling_strategy": "SPREAD"}
        # The driver starts dead ones again, so that tries are counted; sync, so that its child's parent is one thread.
        actor = ray.remote(Supervisor).options(max_restarts=0, max_concurrency=1, **options)
        handle = actor.remote(self._text, worker, environment)
        self._actors[worker] = _Actor(handle, handle.ready.remote(), at_work.Follower(self._log(worker)))

    def _log(self, worker: int) -> Any:
        return at_work.log_file(self._stage, worker)

    def give(self, worker: int, task: Task) -> None:
        """As `Crew.give`."""
        actor = self._actors[worker]
        actor.call = actor.handle.make.remote(task)

    def events(self, timeout_s: float) -> Iterator[tuple[int, Event]]:
        """As `Crew.events`. How far a shard is within itself is not told.

        Raises StageFailed when a worker cannot be started because its machine's room is taken.
        """
        awaited: dict[Any, int] = {}
        for worker, actor in self._actors.items():
            awaited |= {ref: worker for ref in (actor.starting, actor.call) if ref is not None}
        ready, _ = ray.wait(list(awaited), num_returns=1, timeout=timeout_s)
        for ref in ready:
            worker = awaited[ref]
            if worker in self._actors:
                yield worker, self._event(worker, ref)
        for worker, actor in self._actors.items():
            if actor.starting is not None and time.monotonic() - actor.began > _START_S:
                raise StageFailed(
                    f"{self._stage.title}: Ray found no room for worker {worker} within {_START_S:.0f} s "
                    f"({self._room.cores} core(s), {self._room.gpus} GPU(s)): other work has it, or a machine is gone. "
                    "`ray status` shows what is taken."
                )
            if line := actor.log.news(pool.RELAY_S):
                print(f"worker {worker}: {line}", flush=True)

    def _event(self, worker: int, ref: Any) -> Event:
        actor = self._actors[worker]
        try:
            event: Event = ray.get(ref)
        except RayError as error:
            event = Ended(f"its actor died ({_reason(error)})", actor.log.tail())
        if ref == actor.starting:
            actor.starting = None
        else:
            actor.call = None
        if isinstance(event, Ended):
            self.end(worker)
        return event

    def end(self, worker: int) -> None:
        """As `Crew.end`."""
        with suppress(RayError):
            ray.kill(self._actors.pop(worker).handle, no_restart=True)


def _look_for(address: str) -> None:
    """Raise OSError if nothing listens there: Ray itself would end the process, a minute later."""
    if address != "auto":
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), _CONNECT_S).close()


def _reason(error: Exception) -> str:
    """The first line of Ray's error, and the last one: that of an actor which could not begin ends in its own."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ... ".join(dict.fromkeys([lines[0], lines[-1]]))


class _Actor:
    def __init__(self, handle: Any, starting: Any, log: at_work.Follower) -> None:
        self.handle, self.starting, self.log = handle, starting, log
        self.call: Any = None
        self.began = time.monotonic()


class Supervisor:
    """The actor: a worker's process is its child, and dies with it. What is said between the two stays here."""

    def __init__(self, stage: str, worker: int, environment: Mapping[str, str]) -> None:
        of = Stage.from_json(stage)
        if not of.stage_file.exists():
            raise BadInput(
                f"{of.config.folder}: not on {socket.gethostname()}. A run's folder must be the same path on every "
                "machine of the cluster."
            )
        self._worker = worker
        self._pool = pool.Pool(of, {worker: Share(environment)})
        self._pool.start(worker)

    def ready(self) -> Did:
        """Nothing is done; but the actor has its room."""
        return Did(0)

    def make(self, task: Task) -> Event:
        """Have a shard made: that it is, that it cannot be, or that the child ended."""
        self._pool.give(self._worker, task)
        while True:
            for _, event in self._pool.events(math.inf):
                if not isinstance(event, Did):
                    return event
