"""Run a stage in a process of its own: watched, logged to a file, ended with all its children."""

import contextlib
import os
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data import files, store
from data.errors import PCOError, StageFailed
from pco import installed, progress
from pco.execution import at_work, disk_space, process_group
from pco.models import hub
from pco.progress import Failure, Progress
from pco.stage import LAUNCHED, PARENT, Stage
from pco.training import checkpoints

_POLL_S = 0.1
_TAIL_LINES = 15
ATTEMPT = "==== attempt"  # begins the log of each attempt at a stage
_FULL = 2**20  # bytes; with fewer free a disk counts as full

# What stage processes need and a user's shell rarely sets; a variable that is set wins.
ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    # One process is the engine: the extra ones start slowly on CPU and outlive a killed parent.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # OpenMP's threads wait in a loop, by default so long that two stages on one machine take the cores from each other.
    # benchmarks/threads.py
    "GOMP_SPINCOUNT": "10000",
}


def run(
    stage: Stage[Any],
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_log: Callable[[str], None] = lambda _: None,
) -> store.Manifest:
    """Make sure that a stage is finished, and return its manifest. A finished stage returns at once.

    Raises the stage's own error; StageFailed if its process was killed, crashed, or ran out of time. Committed shards
    remain in every case.
    """
    done = stage.finished()
    if done is not None:
        checkpoints.remove(stage.folder / checkpoints.FOLDER)  # a kill may have come just before they were
        return done
    # Before anything of the stage is swept or written: they may still be writing it.
    if left := process_group.end_leftovers(stage.stage_file):
        on_log(f"ended {left} process(es) that an earlier attempt had left behind")
    _prepare_log(stage)
    try:
        disk_space.check(stage)
        return _launched(stage, on_progress, on_log)
    except PCOError as error:
        with contextlib.suppress(PCOError):  # a full disk, say: the first error is the one to tell
            Failure.of(error).write(stage.error_file)
        raise


def _launched(
    stage: Stage[Any], on_progress: Callable[[Progress], None], on_log: Callable[[str], None]
) -> store.Manifest:
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    failure: Failure | None = None
    start = stage.log_file.stat().st_size
    with _process(stage) as process:
        for line in _lines(process, stage, start):
            event = progress.parse(line)
            if isinstance(event, Progress):
                on_progress(event)
            elif isinstance(event, Failure):
                failure = event
            elif line:
                tail.append(line)
                on_log(line)
    if failure is not None:
        raise failure.error
    if process.returncode != 0:
        _check_disk(stage)
        raise StageFailed(
            f"{stage.title}: {process_group.cause(process.returncode)}. Log: {stage.log_file}\n" + "\n".join(tail)
        )
    finished = stage.finished()
    if finished is None:
        raise StageFailed(
            f"{stage.title}: ended without an error but left no manifest in {stage.folder}. Log: {stage.log_file}"
        )
    return finished


def _prepare_log(stage: Stage[Any]) -> None:
    files.write_text(stage.stage_file, stage.to_json())
    with files.write_errors(stage.log_file):
        for folder in (stage.log_file.parent, stage.folder):
            files.sweep(folder)
        for old in (stage.error_file, at_work.path(stage)):
            old.unlink(missing_ok=True)
        with stage.log_file.open("a", encoding="utf-8") as file:  # an earlier attempt's log may tell why it failed
            file.write("\n" * (file.tell() > 0) + f"{ATTEMPT} at {time.strftime('%Y-%m-%d %H:%M:%S')}\n")


@contextlib.contextmanager
def _process(stage: Stage[Any]) -> Iterator[subprocess.Popen[bytes]]:
    """The stage's process, its output going straight to the log file; no member of its group survives the block."""
    with stage.log_file.open("ab") as output:
        process = subprocess.Popen(
            [installed.python(), "-m", "pco.execution.worker_main", str(stage.stage_file)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=_environment(stage),
        )
    try:
        yield process
    finally:
        process_group.end_group(process)


def _environment(stage: Stage[Any]) -> dict[str, str]:
    environment = {**ENVIRONMENT, **os.environ, LAUNCHED: repr(time.time()), PARENT: str(os.getpid())}
    environment[process_group.STAGE_FILE] = str(stage.stage_file)
    asks_hub = stage.name == "evaluate" and stage.config.evaluate.tasks  # for their data
    if not asks_hub and not any(hub.needs_hub(model) for model in stage.config.models):
        environment.setdefault("HF_HUB_OFFLINE", "1")
    if shutil.which(os.environ.get("CXX", "g++")) is None:  # vLLM compiles small functions even where it is told not to
        environment.setdefault("TORCHDYNAMO_DISABLE", "1")
    # A rank of an outer launcher must not make this stage believe it is one itself; its Python it has already.
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", installed.STAGE_PYTHON):
        environment.pop(name, None)
    # As `python -P`, for DeepSpeed's ranks too: nothing of the working directory is imported in place of ours.
    environment["PYTHONSAFEPATH"] = "1"
    return environment


def _lines(process: subprocess.Popen[bytes], stage: Stage[Any], start: int) -> Iterator[str]:
    """The log's lines from byte `start` on as they come, until the process has ended and all is read.

    Raises StageFailed when the process takes too long, or says nothing for too long.
    """
    began = heard = time.monotonic()
    with stage.log_file.open(encoding="utf-8", errors="replace") as file:
        file.seek(start)
        torn = ""
        while True:
            ended = process.poll() is not None
            chunk = file.read()
            *lines, torn = (torn + chunk).split("\n")
            yield from lines
            if ended and not chunk:
                if torn:
                    yield torn
                return
            now = time.monotonic()
            if chunk:
                heard = now
            if now - began > stage.config.stage_timeout_s:
                raise StageFailed(
                    f"{stage.title}: ran out of time (`stage_timeout_s`) and was ended. Log: {stage.log_file}"
                )
            if now - heard > stage.config.stall_timeout_s:
                raise StageFailed(_stalled(process, stage))
            if not chunk:
                time.sleep(_POLL_S)


def _stalled(process: subprocess.Popen[bytes], stage: Stage[Any]) -> str:
    sizes = {log: log.stat().st_size for log in (stage.log_file, *at_work.logs(stage))}
    process_group.ask_for_stacks(process, lambda: all(log.stat().st_size > size for log, size in sizes.items()))
    stacks = "\n".join(filter(None, (_after(log, size) for log, size in sizes.items())))
    return (
        f"{stage.title}: said nothing for {stage.config.stall_timeout_s} s (`stall_timeout_s`) and was ended. Log: "
        f"{stage.log_file}\nWhere it stood:\n{stacks or 'It gave no answer when asked for its stacks.'}"
    )


def _after(log: Path, size: int) -> str:
    with log.open("rb") as file:
        file.seek(size)
        return file.read().decode(errors="replace").strip()


def _check_disk(stage: Stage[Any]) -> None:
    """A process on a full disk cannot even tell why it failed: its log lies there, too."""
    if shutil.disk_usage(stage.config.folder).free < _FULL:
        raise PCOError(
            f"{stage.config.folder}: the disk is full, and {stage.title} ended. What it committed is intact: make "
            "room, then resume."
        )
