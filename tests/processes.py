"""Forks of the test's process: killed at a chosen moment, or without root's privileges."""

import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_NOBODY = 65534
_CALLS = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir")


def killed_after(calls: int, action: Callable[[], object]) -> bool:
    """Do something in a process that is killed in place of the next call to the disk after so many.

    Returns whether it got that far. A killed process cleans nothing up: no `finally`, no exit handler.
    """

    def doomed() -> None:
        left = iter(range(calls))
        for name in _CALLS:
            setattr(os, name, _deadly(getattr(os, name), left))
        action()

    status = _in_fork(doomed)
    assert status in (0, -signal.SIGKILL), "see the traceback on standard error"
    return status != 0


def let_everyone_enter(folder: Path) -> None:
    """Open a folder of pytest's, and those of pytest's above it, which are closed to other users."""
    for closed in (folder, *folder.parents):
        if closed.stat().st_mode & 0o7777 == 0o700 and closed != Path.home():
            closed.chmod(0o755)


def as_nobody(action: Callable[[], object]) -> None:
    """Do something without root's privileges, which ignore permissions. Raises AssertionError if it raises."""

    def unprivileged() -> None:
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(_NOBODY)
            os.setuid(_NOBODY)
        action()

    assert _in_fork(unprivileged) == 0, "see the traceback on standard error"


def _deadly(real: Callable[..., Any], left: Any) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    return call


def _in_fork(action: Callable[[], object]) -> int:
    """The exit status of a copy of this process that does nothing else."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
