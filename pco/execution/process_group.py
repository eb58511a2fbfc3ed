"""The processes of a stage: end them all, find what an earlier attempt left, ask a hanging one where it stands."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

# What kills a rank; not 1, since 255 is also what many programs end with.
_DEADLY = {signal.SIGABRT, signal.SIGBUS, signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM}

# In the environment of a stage's processes: the file that tells them what to do, and so which stage of which run.
STAGE_FILE = "PCO_STAGE_FILE"
WORKER = "PCO_WORKER"  # in that of a worker's processes: which of which driver's
STACKS_SIGNAL = signal.SIGUSR1  # asks a stage process for the stacks of its threads, which it writes into its log

_GRACE_S = 5.0
_POLL_S = 0.02
_STACKS_S = 2.0


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process with all members of its group, first politely, then for good."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        if _until(lambda: not _group_lives(process), _GRACE_S):
            return


def _group_lives(process: subprocess.Popen[bytes]) -> bool:
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def end_leftovers(stage_file: Path) -> int:
    """End what is left of earlier attempts at a stage; returns how many processes that were.

    To be called by the run's only writer, so that any process of this stage is one that nobody waits for any more. The
    mark in its environment tells ours from others', whatever became of process ids since (psutil checks start times).
    """
    return _end_marked(STAGE_FILE, str(stage_file))


def end_leftovers_of_worker(mark: str) -> None:
    """End what a worker that is dead has started."""
    _end_marked(WORKER, mark)


def _end_marked(name: str, value: str) -> int:
    left = [process for process in _processes() if _variable(process, name) == value]
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=_GRACE_S)
    return len(left)


def _processes() -> Iterator[psutil.Process]:
    """Others that see the same process ids: the same path may be another run's in a container."""
    own = namespace(os.getpid())
    return (other for other in psutil.process_iter() if other.pid != os.getpid() and namespace(other.pid) == own)


def namespace(pid: int) -> str | None:
    """What tells containers apart (Linux); None where that is not known."""
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return None


def _variable(process: psutil.Process, name: str) -> str | None:
    try:
        return process.environ().get(name)
    except (psutil.Error, OSError):  # it has ended, or is another user's
        return None


def cause(returncode: int) -> str:
    """How a process ended, in words."""
    # DeepSpeed's launcher ends with the status of a rank; a signal that killed one then counts down from 256.
    rank_signal = 256 - returncode if 256 - returncode in _DEADLY else 0
    number = -returncode if returncode < 0 else rank_signal
    if not number:
        return f"its process ended with status {returncode}"
    name = signal.Signals(number).name
    hint = ", as the kernel does when memory runs out" if name == "SIGKILL" else ""
    return f"its process was killed by {name}{hint}"


def ask_for_stacks(process: subprocess.Popen[bytes], is_logged: Callable[[], bool]) -> None:
    """Have every stage process in a group write its stacks into the log; wait shortly until `is_logged`."""
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(process.pid)
        for member in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                if _answers(member.cmdline()):
                    member.send_signal(STACKS_SIGNAL)
    _until(is_logged, _STACKS_S)


def _answers(command: list[str]) -> bool:
    """DeepSpeed's launcher does not, and would die of the signal with all its ranks."""
    return "pco.execution.worker_main" in command and "deepspeed.launcher.launch" not in command


def _until(true: Callable[[], bool], patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
