"""Keeps the trackers of a run up to date while it runs, in a process beside it."""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from data.store import Manifest
from pco.config.run import RunConfig
from pco.config.trackers import check_installed
from pco.execution import process_group
from pco.stage import Stage

_PATIENCE_S = 120.0  # for what is still untold when the run has ended

Do = Callable[[Stage], Manifest]


@contextlib.contextmanager
def following(config: RunConfig, warn: Callable[[str], None]) -> Iterator[Callable[[Do], Do]]:
    """Gives what makes of a `do` of `pco.rounds.walk` one after which trackers are told; the rest is told at the end.

    A tracker that cannot be told costs a warning and never the run: `pco track RUN` catches up. Raises BadInput at once
    where the package of one is not installed.
    """
    check_installed(config.track)
    if not config.track:
        yield lambda do: do
        return
    follower = _Follower(config.folder, warn)
    try:
        yield follower.after
        follower.tell_the_rest()
    finally:
        follower.end()


class _Follower:
    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self._folder, self._warn = folder, warn
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  closed by `end`
        self._warned: set[str] = set()

    def after(self, do: Do) -> Do:
        def do_and_tell(stage: Stage) -> Manifest:
            manifest = do(stage)
            if self._process is None or self._process.poll() is not None:
                self._begin()
            return manifest

        return do_and_tell

    def tell_the_rest(self) -> None:
        """Wait for what is being told, then tell what came after that."""
        try:
            if self._process is not None:
                self._process.wait(_PATIENCE_S)
            self._begin().wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._warn_once(f"trackers: still being told after {_PATIENCE_S:.0f} s. `pco track` goes on with it.")
        self._pass_on()

    def end(self) -> None:
        if self._process is not None:
            process_group.end_group(self._process)
        self._output.close()

    def _begin(self) -> subprocess.Popen[bytes]:
        self._pass_on()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pco.tracking.main", str(self._folder)],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "PYTHONSAFEPATH": "1"},
        )
        return self._process

    def _pass_on(self) -> None:
        """Warn of what the process that has ended could not tell."""
        if self._process is None:
            return
        self._output.seek(0)
        for line in self._output.read().splitlines():
            self._warn_once(line)
        self._output.seek(0)
        self._output.truncate()

    def _warn_once(self, reason: str) -> None:
        tracker = reason.partition(":")[0]
        if tracker not in self._warned:
            self._warned.add(tracker)
            self._warn(f"{reason} The run goes on.")
