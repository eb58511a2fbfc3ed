"""What a stage's workers are at: a small file beside its log, written while it runs, read by `pco status`."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data import files
from pco.stage import Stage

_WRITE_EVERY_S = 1.0
_TAIL_LINES, _TAIL_BYTES = 15, 2**16


@dataclass(frozen=True)
class AtWork:
    """One worker: the shard that it makes (none where it has no more to do) and its speed so far (0 at first)."""

    worker: int
    shard: int | None
    per_s: float
    unit: str

    def __str__(self) -> str:
        doing = "no shard left" if self.shard is None else f"shard {self.shard}"
        speed = f", {self.per_s:,.1f} {self.unit}/s" if self.per_s else ""
        return f"worker {self.worker}: {doing}{speed}"


class Board:
    """Keeps the speed of each worker, and writes the file at most once a second."""

    def __init__(self, stage: Stage[Any], unit: str) -> None:
        self._path, self._unit, self._written = path(stage), unit, 0.0
        self._shards: dict[int, tuple[int, float]] = {}  # with when they were begun
        self._made: dict[int, tuple[float, float]] = {}  # units or tokens, and seconds

    def begins(self, worker: int, shard: int) -> None:
        """A worker was given a shard."""
        self._made.setdefault(worker, (0.0, 0.0))
        self._shards[worker] = (shard, time.monotonic())

    def made(self, worker: int, units: int, tokens: float | None) -> None:
        """A worker has made its shard."""
        _, began = self._shards.pop(worker)
        if tokens is not None:
            self._unit = "tokens"
        amount, seconds = self._made[worker]
        self._made[worker] = (amount + (units if tokens is None else tokens), seconds + time.monotonic() - began)

    def write(self) -> None:
        """Write the file, if the last time is long enough ago."""
        if time.monotonic() - self._written < _WRITE_EVERY_S:
            return
        self._written = time.monotonic()
        files.write_text(self._path, json.dumps([asdict(line) for line in self._lines()], indent=1))

    def _lines(self) -> list[AtWork]:
        lines = []
        for worker, (amount, seconds) in sorted(self._made.items()):
            shard, _ = self._shards.get(worker, (None, 0.0))
            lines.append(AtWork(worker, shard, amount / seconds if seconds else 0.0, self._unit))
        return lines


class Follower:
    """Reads the end of a worker's log, from where the log of its process begins."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._begins = self._size()
        self._heard, self._known = time.monotonic(), self._begins

    def _size(self) -> int:
        try:
            return self._log.stat().st_size
        except FileNotFoundError:
            return 0

    def news(self, every_s: float) -> str:
        """The last line, if the log has grown and was not looked at within so many seconds: the worker is alive."""
        if time.monotonic() - self._heard < every_s:
            return ""
        known, self._known, self._heard = self._known, self._size(), time.monotonic()
        return self.tail().rpartition("\n")[2] if self._known != known else ""

    def tail(self) -> str:
        """The last lines."""
        if not (size := self._size()):
            return ""
        with self._log.open("rb") as file:
            file.seek(max(self._begins, size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        return "\n".join([*filter(str.strip, lines)][-_TAIL_LINES:])


def path(stage: Stage[Any]) -> Path:
    """Where the file of a stage lies."""
    return stage.log_file.with_suffix(".workers.json")


def log_file(stage: Stage[Any], worker: int) -> Path:
    """What a worker of a stage printed, in all its attempts."""
    return stage.log_file.with_suffix(f".worker-{worker}.log")


def logs(stage: Stage[Any]) -> list[Path]:
    """The logs of all workers that a stage has had."""
    return sorted(stage.log_file.parent.glob(f"{stage.log_file.stem}.worker-*.log"))


def read(stage: Stage[Any]) -> list[AtWork]:
    """What a stage's workers were at last; nothing where it has none."""
    try:
        return [AtWork(**line) for line in json.loads(path(stage).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):  # it only informs
        return []
