"""A run's folder: one config, one writer."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from data import store
from data.errors import BadInput, RunConflict
from pco.config import RunConfig, overridden, parse
from pco.stage import HOW_TRAINING_RUNS, flat

CONFIG = "config.yaml"
_LOCK = ".lock"
# What may change between two attempts at the same run: it decides no result.
_FREE = {
    "runs_dir",
    "rounds",
    "stage_timeout_s",
    "stall_timeout_s",
    "engine.kv_cache_gib",
    "engine.gpu_memory_utilization",
    "reward.max_tokens_per_batch",
    *(f"train.{name}" for name in HOW_TRAINING_RUNS),
}


@contextmanager
def opened(config: RunConfig) -> Iterator[None]:
    """Hold a run's folder for writing; make it and its `config.yaml` if it is new.

    Raises RunConflict when another process holds it, or when it was made with another config.
    """
    with store.write_errors(config.folder):
        config.folder.mkdir(parents=True, exist_ok=True)
    with _locked(config.folder):
        check_same(config)
        store.write_text(config.folder / CONFIG, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        yield


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The kernel drops the lock of a process that dies, so a stale one cannot exist."""
    path = folder / _LOCK
    with store.write_errors(path):
        handle = path.open("a+", encoding="utf-8")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunConflict(f"{folder}: is being written by {_holder(path)}. Wait for it, or end it.") from None
        handle.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        handle.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}))
        handle.flush()
        yield


def is_held(folder: Path) -> bool:
    """Whether a process is writing to this run now."""
    try:
        with (folder / _LOCK).open("a+", encoding="utf-8") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # never written to, or not ours to write
    return False


def _holder(path: Path) -> str:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return f"process {held['pid']} on {held['host']} since {held['since']}"
    except (ValueError, KeyError, OSError):
        return "another process"


def check_same(config: RunConfig) -> None:
    path = config.folder / CONFIG
    if not path.exists():
        return
    before, now = flat(read_config(config.folder).model_dump(mode="json")), flat(config.model_dump(mode="json"))
    changed = [key for key in sorted(before | now) if key not in _FREE and before.get(key) != now.get(key)]
    if changed:
        told = "\n".join(f"  {key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in changed)
        raise RunConflict(
            f"{config.folder}: this run was made with another config. Fork it (`pco fork {config.run} NEW --set ...`), "
            f"take another name (--set run=...), or the old values:\n{told}"
        )


def report_path(config: RunConfig) -> Path:
    """Where a run's report lies once it is written."""
    return config.folder / "report.html"


def read_config(folder: Path, overrides: list[str] | None = None) -> RunConfig:
    """The config of a run on disk, with `runs_dir` where the run lies now, so that a run may be moved.

    `overrides` are `a.b=value` strings as for `pco run`.

    Raises BadInput when there is no run here.
    """
    path = folder / CONFIG
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = sorted(found.parent.name for found in folder.parent.glob(f"*/{CONFIG}"))
        raise BadInput(f"{folder}: no run here. Runs in {folder.parent}: {', '.join(known) or 'none'}.") from None
    raw["runs_dir"] = str(folder.parent)
    return parse(overridden(raw, overrides or []), source=str(path))
