"""Tell trackers what they have not been told yet of a run."""

import fcntl
import importlib
import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data import files
from data.errors import PCOError
from pco.config.run import RunConfig
from pco.config.trackers import Tracker, check_installed
from pco.tracking import facts
from pco.tracking.facts import Part

FOLDER = "tracking"  # in the folder of the run


@dataclass
class Tracked:
    """A run as a tracker knows it, kept on disk beside the run."""

    name: str
    folder: Path
    settings: dict[str, Any]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Stands for the run where its name may be another run's, too."""
    children: dict[str, str] = field(default_factory=dict)
    """The tracker's own ids of the run and its rounds, where it gives them."""
    sent: dict[str, str] = field(default_factory=dict)
    """Fingerprints of the parts that it has been told, by key."""


def sync(config: RunConfig, tracker: Tracker) -> int:
    """Tell a tracker all that is finished in a run and that it has not been told; returns how many parts that were.

    What a kill or an error leaves untold is told by the next call. Raises BadInput if the package is not installed,
    PCOError when the tracker cannot be reached or refuses.
    """
    check_installed([tracker])
    with _alone(config.folder / FOLDER):
        path = config.folder / FOLDER / f"{tracker}.json"
        run = _read(path, config)
        due = [part for part in facts.parts(config) if run.sent.get(part.key) != part.fingerprint]

        def note(part: Part) -> None:
            run.sent[part.key] = part.fingerprint
            kept = {"id": run.id, "children": run.children, "sent": run.sent}
            files.write_text(path, json.dumps(kept, indent=1))

        if due:
            _send(tracker, run, due, note)
    return len(due)


def _send(tracker: Tracker, run: Tracked, due: list[Part], note: Callable[[Part], None]) -> None:
    send: Callable[[Tracked, list[Part], Callable[[Part], None]], None]
    send = importlib.import_module(f"pco.tracking.to_{tracker}").send
    try:
        send(run, due, note)
    except Exception as error:  # each library has errors of its own for a server that is gone, refuses or breaks off
        reason = str(error).strip().partition("\n")[0][:300] or type(error).__name__
        raise PCOError(
            f"{tracker}: could not be told: {reason}. `pco track {run.name}` tells it what is missing."
        ) from error


def _read(path: Path, config: RunConfig) -> Tracked:
    run = Tracked(config.run, config.folder.resolve(), facts.settings(config))
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        run.id, run.children, run.sent = kept["id"], kept["children"], kept["sent"]
    return run


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for another process that tells trackers of this run: both would tell the same."""
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
