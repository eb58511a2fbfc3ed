"""Kills stage processes at planned calls to the disk. Python imports this by itself where it is on PYTHONPATH.

The folder in PCO_CHAOS holds a token per planned kill, `ROUND-STAGE-ORDER-CALL-VICTIM`. Each attempt at a stage takes
its first token and, at that call on the run's files, kills with SIGKILL: the flow's process, the stage's own, both, or
of a training DeepSpeed's launcher. SIGKILL cleans nothing up; nor does this.

With a file `record` in the folder, calls are counted instead: that tells how many a whole stage makes.
"""

import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CALLS = ("fsync", "replace", "rename", "unlink", "mkdir")


def install(folder: Path, stage_file: Path) -> None:
    """Count this process's calls to the disk, and end it at the planned one."""
    name = f"{stage_file.parent.parent.name}-{stage_file.stem}"
    rename = os.rename
    token = next(iter(sorted(folder.glob(f"{name}-*"))), None)
    recording = (folder / "record").exists()
    if token is None and not recording:
        return
    planned = -1 if token is None else int(token.name.split("-")[-2])
    count = itertools.count()

    def reached() -> None:
        call = next(count)
        if recording:
            with (folder / "calls" / name).open("a") as file:
                file.write(".")
        elif call == planned and token is not None:
            rename(token, folder / "done" / token.name)
            kill(token.name.rsplit("-", 1)[1])

    for call in CALLS:
        setattr(os, call, before(reached, stage_file.parents[2], getattr(os, call)))


def before(reached: Callable[[], None], run: Path, real: Callable[..., Any]) -> Callable[..., Any]:
    """The real call, announced if it concerns a file of the run."""

    def call(target: Any, *args: Any, **kwargs: Any) -> Any:
        path = Path(f"/proc/self/fd/{target}").readlink() if isinstance(target, int) else os.fspath(target)
        if str(path).startswith(f"{run}/"):
            reached()
        return real(target, *args, **kwargs)

    return call


def kill(victim: str) -> None:
    """End the flow's process, DeepSpeed's launcher, this one, or the flow's and this one."""
    parent = os.getppid()
    flow = parent_of(parent) if "RANK" in os.environ else parent
    for pid in {"flow": [flow], "launcher": [parent], "self": [os.getpid()], "both": [flow, os.getpid()]}[victim]:
        os.kill(pid, signal.SIGKILL)
    signal.pause()  # dies with its parent


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def is_stage_process() -> bool:
    """Not DeepSpeed's launcher, nor what a stage's process starts."""
    command = sys.orig_argv
    if "pco.execution.worker_main" not in command or "deepspeed.launcher.launch" in command:
        return False
    return "RANK" in os.environ or not command[-1].endswith("train.json")


if "PCO_CHAOS" in os.environ and is_stage_process():
    install(Path(os.environ["PCO_CHAOS"]), Path(os.environ["PCO_STAGE_FILE"]))
