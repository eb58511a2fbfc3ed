"""Run a stage in a process of its own: watched, logged to a file, ended with all its children."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from data import errors, store
from data.errors import PCOError, StageFailed
from pco import progress
from pco.config import RunConfig
from pco.progress import Failure, Progress
from pco.stage import LAUNCHED, PARENT, Stage, StageName, round_folder

_POLL_S = 0.1
_GRACE_S = 5.0
_TAIL_LINES = 15

# What stage processes need and a user's shell rarely sets; a variable that is set wins.
_ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    # One process is the engine: the extra ones start slowly on CPU and outlive a killed parent.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


def run(
    stage: Stage,
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
        return done
    log = _prepare_log(stage)
    try:
        return _launched(stage, log, on_progress, on_log)
    except PCOError as error:
        with contextlib.suppress(PCOError):  # a full disk, say: the first error is the one to tell
            store.write_text(error_path(stage.config, stage.round, stage.name), str(error))
        raise


def error_path(config: RunConfig, number: int, name: StageName) -> Path:
    """Where the error of a stage's last attempt lies, if that failed."""
    return round_folder(config, number) / "logs" / f"{name}.error"


def _launched(
    stage: Stage, log: Path, on_progress: Callable[[Progress], None], on_log: Callable[[str], None]
) -> store.Manifest:
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    failure: Failure | None = None
    with _process(stage, log) as process:
        for line in _lines(process, log, time.monotonic() + stage.config.stage_timeout_s):
            event = progress.parse(line)
            if isinstance(event, Progress):
                on_progress(event)
            elif isinstance(event, Failure):
                failure = event
            elif line:
                tail.append(line)
                on_log(line)
    if failure is not None:
        raise _rebuilt(failure)
    if process.returncode != 0:
        raise StageFailed(f"{stage.title}: {_cause(process.returncode)}. Log: {log}\n" + "\n".join(tail))
    finished = stage.finished()
    if finished is None:
        raise StageFailed(f"{stage.title}: ended without an error but left no manifest in {stage.folder}. Log: {log}")
    return finished


def _prepare_log(stage: Stage) -> Path:
    logs = round_folder(stage.config, stage.round) / "logs"
    store.write_text(logs / f"{stage.name}.json", stage.to_json())
    log = logs / f"{stage.name}.log"
    with store.write_errors(log):
        error_path(stage.config, stage.round, stage.name).unlink(missing_ok=True)
        log.write_text("", encoding="utf-8")
    return log


@contextlib.contextmanager
def _process(stage: Stage, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The stage's process, its output going straight to the log file; no member of its group survives the block."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pco.process", str(log.with_suffix(".json"))],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=_environment(stage),
        )
    try:
        yield process
    finally:
        _end_group(process)


def _environment(stage: Stage) -> dict[str, str]:
    environment = {**_ENVIRONMENT, **os.environ, LAUNCHED: repr(time.time()), PARENT: str(os.getpid())}
    if Path(stage.config.policy.model).is_dir():
        environment.setdefault("HF_HUB_OFFLINE", "1")
    # A rank of an outer launcher must not make this stage believe it is one itself.
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        environment.pop(name, None)
    return environment


def _lines(process: subprocess.Popen[bytes], log: Path, deadline: float) -> Iterator[str]:
    """The log's lines as they come, until the process has ended and all is read."""
    with log.open(encoding="utf-8", errors="replace") as file:
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
            if time.monotonic() > deadline:
                raise StageFailed(f"{log.stem}: ran out of time (`stage_timeout_s`) and was ended. Log: {log}")
            if not chunk:
                time.sleep(_POLL_S)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """First politely, then for good."""
    for number, patience in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, _GRACE_S)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        deadline = time.monotonic() + patience
        while _group_lives(process) and time.monotonic() < deadline:
            time.sleep(_POLL_S / 5)
        if not _group_lives(process):
            return


def _group_lives(process: subprocess.Popen[bytes]) -> bool:
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _cause(returncode: int) -> str:
    if returncode >= 0:
        return f"its process ended with status {returncode}"
    name = signal.Signals(-returncode).name
    hint = ", as the kernel does when memory runs out" if name == "SIGKILL" else ""
    return f"its process was killed by {name}{hint}"


def _rebuilt(failure: Failure) -> PCOError:
    kind = getattr(errors, failure.kind, PCOError)
    error: PCOError = kind(failure.message)
    return error
