"""Acts at planned calls to the disk. Python imports this by itself where its folder is on PYTHONPATH.

**Points** (tests/points.py): the folder in PCO_POINTS holds a file for each plan, with the end of a path in it. Before
a process makes that path (or removes it), it acts: with `NAME.hold`, it waits for as long as that file is there, having
written its id into `NAME.held`; with `NAME.self` or `NAME.group`, it removes that file and kills itself or its group.

**Chaos** (tests/e2e/test_chaos.py): the folder in PCO_CHAOS holds a token per planned kill,
`ROUND-STAGE-ORDER-CALL-VICTIM`. Each attempt at a stage takes its first token and, at that call on the run's files,
kills: the flow's process, the stage's own, both, or of a training DeepSpeed's launcher. With a file `record` in the
folder, calls are counted instead: that tells how many a whole stage makes.

All kills are SIGKILL, which cleans nothing up; nor does this.
"""

import contextlib
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TARGET = {"fsync": 0, "unlink": 0, "mkdir": 0, "replace": 1, "rename": 1}  # which argument the call makes or removes
SOURCE = dict.fromkeys(TARGET, 0)


def watch(arguments: dict[str, int], reached: Callable[[str], None]) -> None:
    """Have `reached` told of the path that each call to the disk is about, before the call."""
    for name, argument in arguments.items():
        setattr(os, name, before(reached, argument, getattr(os, name)))


def before(reached: Callable[[str], None], argument: int, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        reached(str(path_of(args[argument])))
        return real(*args, **kwargs)

    return call


def path_of(target: int | str | bytes | os.PathLike[str]) -> Path:
    """Of an open file or a path."""
    if isinstance(target, int):
        return Path(f"/proc/self/fd/{target}").readlink()
    return Path(os.fsdecode(target)).absolute()


def keep_to(plans: Path) -> None:
    """Wait or die where the plans say so."""
    unlink, replace = os.unlink, os.replace

    def reached(path: str) -> None:
        for plan in sorted(plans.glob("*")):
            if plan.suffix in {".hold", ".self", ".group"} and concerns(plan, path):
                {".hold": hold, ".self": die, ".group": die_with_group}[plan.suffix](plan)

    def concerns(plan: Path, path: str) -> bool:
        with contextlib.suppress(FileNotFoundError):  # the test has just let go
            return path.endswith(plan.read_text())
        return False

    def hold(plan: Path) -> None:
        told = plan.with_suffix(f".{os.getpid()}")
        told.write_text(str(os.getpid()))
        replace(told, plan.with_suffix(".held"))
        while plan.exists():
            time.sleep(0.02)

    def die(plan: Path) -> None:
        unlink(plan)
        os.kill(os.getpid(), signal.SIGKILL)

    def die_with_group(plan: Path) -> None:
        unlink(plan)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    watch(TARGET, reached)


def install_chaos(folder: Path, stage_file: Path) -> None:
    """Count this process's calls to the disk, and end it at the planned one."""
    name = f"{stage_file.parent.parent.name}-{stage_file.stem}"
    rename = os.rename
    token = next(iter(sorted(folder.glob(f"{name}-*"))), None)
    recording = (folder / "record").exists()
    if token is None and not recording:
        return
    planned = -1 if token is None else int(token.name.split("-")[-2])
    count = itertools.count()

    def reached(path: str) -> None:
        if not path.startswith(f"{stage_file.parents[2]}/"):
            return
        call = next(count)
        if recording:
            with (folder / "calls" / name).open("a") as file:
                file.write(".")
        elif call == planned and token is not None:
            rename(token, folder / "done" / token.name)
            kill(token.name.rsplit("-", 1)[1])

    watch(SOURCE, reached)


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


if "PCO_POINTS" in os.environ:
    keep_to(Path(os.environ["PCO_POINTS"]))
if "PCO_CHAOS" in os.environ and is_stage_process():
    install_chaos(Path(os.environ["PCO_CHAOS"]), Path(os.environ["PCO_STAGE_FILE"]))
