"""What a driver and its workers say to each other: JSON, so that no object of the one is made in the other."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from pco.progress import Failure


@dataclass(frozen=True)
class Task:
    """Make this shard of this table."""

    table: str
    shard: int


@dataclass(frozen=True)
class Did:
    """So many more units of the shard at work are done."""

    units: float


@dataclass(frozen=True)
class Made:
    """The shard at work is on disk. What was measured is empty if it was there before."""

    measured: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Failed:
    """The shard at work cannot be made: an error of this package, which trying again does not help."""

    failure: Failure


@dataclass(frozen=True)
class Ended:
    """The worker's process ended without a word: how, and the last lines of its log."""

    how: str
    tail: str = ""


Message = Task | Did | Made | Failed
Event = Did | Made | Failed | Ended


def encoded(message: Message) -> bytes:
    """A message as bytes."""
    return json.dumps({"is": type(message).__name__, **asdict(message)}).encode()


def task(content: bytes) -> Task:
    """The inverse of `encoded` for what a worker is told."""
    fields = json.loads(content)
    return Task(fields["table"], fields["shard"])


def event(content: bytes) -> Did | Made | Failed:
    """The inverse of `encoded` for what a worker says."""
    fields = json.loads(content)
    match fields["is"]:
        case "Did":
            return Did(fields["units"])
        case "Made":
            return Made(fields["measured"])
        case _:
            return Failed(Failure(**fields["failure"]))
