"""Messages of a stage process to its parent: marked JSON lines on standard output, among its ordinary log."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from data import errors, files
from data.errors import PCOError

_MARK = "\x1epco "
_INTERVAL_S = float(os.environ.get("PCO_PROGRESS_EVERY_S", "0.5"))
_last_sent = 0.0


@dataclass(frozen=True)
class Progress:
    """How far a stage is: `done` of `total` `unit`s, some perhaps in part. `note` holds more, such as a rate."""

    done: float
    total: int
    unit: str
    note: str = ""

    @property
    def count(self) -> int:
        """The whole units that are done."""
        return int(self.done)


@dataclass(frozen=True)
class Failure:
    """An error of this package as text, for the parent process, which raises it again, and for the error file."""

    kind: str
    message: str

    @staticmethod
    def of(error: PCOError) -> "Failure":
        """The failure of an error: the name of its class, and its message."""
        return Failure(type(error).__name__, str(error))

    @property
    def error(self) -> PCOError:
        """The failure as an error again."""
        kind: type[PCOError] = getattr(errors, self.kind, PCOError)
        return kind(self.message)

    def write(self, path: Path) -> None:
        """Write it to a file."""
        files.write_text(path, json.dumps(asdict(self), indent=1))

    @staticmethod
    def read(path: Path) -> "Failure | None":
        """The failure in a file; None when there is no file. Before version 0.2 a file held only the message."""
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        try:
            return Failure(**json.loads(text))
        except (ValueError, TypeError):
            return Failure("AwaitsAnswer" if "`pco answer " in text else "PCOError", text)


def report(progress: Progress) -> None:
    """Report to the parent, at most twice a second (PCO_PROGRESS_EVERY_S changes that), and always at the end."""
    global _last_sent
    now = time.monotonic()
    if progress.done < progress.total and now - _last_sent < _INTERVAL_S:
        return
    _last_sent = now
    send({"progress": asdict(progress)})


def send(event: Mapping[str, object]) -> None:
    """Write one event line."""
    print(f"{_MARK}{json.dumps(event)}", flush=True)


def parse(line: str) -> Progress | Failure | None:
    """The event in a line of a stage's output; None for ordinary log text."""
    if not line.startswith(_MARK):
        return None
    try:
        event = json.loads(line[len(_MARK) :])
        match event:
            case {"progress": fields}:
                return Progress(**fields)
            case {"failure": fields}:
                return Failure(**fields)
    except (ValueError, TypeError):
        pass  # a torn line of a killed process: log text
    return None
