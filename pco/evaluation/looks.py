"""Looks at the test set: a file in the run's folder to which each adds a line before it begins, and which only grows.

A test set says the truth about a policy that was not chosen by it. Whoever looks, goes on and looks again may keep what
the test set happens to like, so a run counts its looks (`pco.rounds.walk`), those of runs that it was forked from too.
"""

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from data import files, store
from data.errors import CorruptArtifact
from pco.stage import Stage

FILE = "test-looks.jsonl"


@dataclass(frozen=True)
class Look:
    """One policy, put to one test set: by which run and after which of its rounds, and when (UTC).

    `policy` and `prompts` are digests. The same policy on the same prompts gives the same result, so it is one look
    however often it is taken.
    """

    run: str
    round: int
    policy: str
    prompts: str
    at: str = ""


def read(folder: Path) -> list[Look]:
    """The looks that a run's folder tells of, the first one first.

    Raises CorruptArtifact for a line that is none: a look that is not counted would be as bad as one that never was.
    """
    path = folder / FILE
    if not path.exists():
        return []
    looks = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            looks.append(Look(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise CorruptArtifact(
                f"{path}, line {number}: tells of no look at the test set ({error}). Restore the file from a copy."
            ) from error
    return looks


def count(looks: Iterable[Look], prompts: str) -> int:
    """How many policies were put to a test set."""
    return len({look.policy for look in looks if look.prompts == prompts})


def record(test: Stage) -> None:
    """Add the look of a stage `test`, unless it is there already: one that was killed and goes on is the same."""
    test_set = store.read_manifest(test.inputs["prompts"].folder)
    assert test_set is not None, "an input is a finished stage"
    look = Look(test.config.run, test.round, test.inputs["policy"].fingerprint, test_set.inputs["test"])
    folder = test.config.folder
    if look not in [replace(earlier, at="") for earlier in read(folder)]:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        files.append_line(folder / FILE, json.dumps({**asdict(look), "at": now}))
