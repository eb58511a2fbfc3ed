"""A run's folder: one config, one writer."""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from data import files
from data.errors import BadInput, RunConflict
from pco.config import formats, train
from pco.config.file import OF_RUN, of_run, validated
from pco.config.overrides import overridden
from pco.config.reward import as_it_was, settings
from pco.config.reward_training import RewardTraining
from pco.config.run import RunConfig, parse
from pco.config.train import HOW_TRAINING_RUNS
from pco.evaluation import looks
from pco.stage import flat

BEST = "best"  # a link to the folder of the best policy so far
_LOCK = ".lock"
_RECOVERY = ".recovery"
# Settings that may change between two attempts at the same run: they decide no result.
_FREE = {
    "runs_dir",
    "rounds",
    "keep_last",
    "keep_best",
    "stage_timeout_s",
    "stall_timeout_s",
    "track",
    "executor.kind",
    "executor.workers",
    "executor.gpus_per_worker",
    "executor.address",
    "series.on_overlap",
    "series.at_least",
    "engine.kv_cache_gib",
    "engine.gpu_memory_utilization",
    # They decide which stages come next and with which settings; each of those stages has its own fingerprint.
    "gate.otherwise",
    "gate.patience",
    "gate.retry_learning_rate",
    "gate.answer_within_s",
    "gate.error_rate",
    *(f"train.{name}" for name in HOW_TRAINING_RUNS),
}


@contextmanager
def opened(config: RunConfig | RewardTraining, flow_run: str = "") -> Iterator[None]:
    """Hold a run's folder for writing; make it and its `config.yaml` if it is new.

    `flow_run` is the id of the Prefect flow run that writes; `holder` returns it.

    Raises RunConflict when another process holds it, or when it was made with another config.
    """
    with files.write_errors(config.folder):
        config.folder.mkdir(parents=True, exist_ok=True)
    with locked(config.folder, flow_run):
        check_same(config)
        files.sweep(config.folder)
        write_config(config, config.folder)
        yield


@contextmanager
def locked(folder: Path, flow_run: str = "") -> Iterator[None]:
    """Hold a folder that is there for writing. The kernel drops the lock of a process that dies.

    Raises RunConflict when another process holds it.
    """
    path = folder / _LOCK
    with files.write_errors(path):
        handle = path.open("a+b", buffering=0)  # with a buffer, closing would write again what could not be written
    with handle:
        if not _try_lock(handle):
            raise RunConflict(f"{folder}: is being written by {_writer(path)}. Wait for it, or end it.")
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        writer = {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "flow_run": flow_run}
        with files.write_errors(path):
            handle.truncate(0)
            handle.write(json.dumps(writer).encode())
        yield


def _try_lock(handle: IO[bytes]) -> bool:
    """Try to lock, more than once: `is_held` also holds the lock for an instant."""
    for _ in range(5):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.05)
    return False


def is_held(folder: Path) -> bool:
    """Whether a process is writing to this run now."""
    try:
        with (folder / _LOCK).open(encoding="utf-8") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # never written to, or not readable by this user
    return False


def holder(folder: Path) -> str | None:
    """The id of the flow run that writes to this run now; "" if it is unknown, None if no process writes.

    Raises BadInput when the folder is not on this machine, or not readable by this user.
    """
    held = is_held(folder)
    try:
        writer = json.loads((folder / _LOCK).read_text(encoding="utf-8"))
        return str(writer["flow_run"]) if held else None
    except OSError as error:
        raise BadInput(f"{folder}: no run here that can be read ({error.strerror}).") from None
    except (ValueError, KeyError):  # locked just now, or by an earlier version
        return ""


@contextmanager
def recovering(folder: Path) -> Iterator[None]:
    """Wait for other processes that recover this run, so that each sees the result of the one before it."""
    path = folder / _RECOVERY
    with files.write_errors(path):
        handle = path.open("a", encoding="utf-8")
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _writer(path: Path) -> str:
    try:
        writer = json.loads(path.read_text(encoding="utf-8"))
        flow_run = f" (Prefect flow run {writer['flow_run']})" if writer.get("flow_run") else ""
        return f"process {writer['pid']} on {writer['host']} since {writer['since']}{flow_run}"
    except (ValueError, KeyError, OSError):
        return "another process"


def check_same(config: RunConfig | RewardTraining) -> None:
    """Raise RunConflict if the config's folder holds a run with other settings that decide results."""
    path = config.folder / OF_RUN
    if not path.exists():
        return
    raw = _raw(config.folder)
    if _is_reward_training(raw) != isinstance(config, RewardTraining):
        raise RunConflict(f"{config.folder}: holds another kind of run. Take another name (--set run=...).")
    made_with = formats.decided(validated(type(config), raw, source=str(path)), raw)
    # A test set may join a run, or be another one, for as long as it was not looked at.
    may_join = not looks.read(config.folder)
    changes = changed(made_with, config, is_free=lambda key: may_join and _is_of_test_set(key))
    decided = len(list(config.folder.glob("round-*/decision/manifest.json")))
    if isinstance(config, RunConfig) and config.rounds < decided:
        raise RunConflict(
            f"{config.folder}: {decided} rounds are decided; `rounds: {config.rounds}` would forget the later ones. "
            f"Give {decided} or more; to go back, set rounds aside with `pco resume --from`, or fork the run."
        )
    if changes:
        fork = "" if isinstance(config, RewardTraining) else f"Fork it (`pco fork {config.run} NEW --set ...`), or "
        raise RunConflict(
            f"{config.folder}: this run was made with another config. {fork}take another name (--set run=...), or the "
            f"old values:\n" + "\n".join(changes)
        )


def _is_of_test_set(key: str) -> bool:
    """Not `prompts.test_share`, which takes its prompts from those that the gate decides by."""
    return key == "prompts.test" or key.startswith("prompts.test.")


def changed(
    before: RunConfig | RewardTraining,
    now: RunConfig | RewardTraining,
    *,
    is_free: Callable[[str], bool] = lambda _: False,
) -> list[str]:
    """The settings that decide results and differ, a line for each; those of which `is_free` holds may differ."""
    there, here = _deciding(before), _deciding(now)
    deciding = [key for key in sorted({*there, *here}) if key not in _FREE and not is_free(key)]
    return [
        f"  {key}: {there.get(key)!r} there, {here.get(key)!r} now"
        for key in deciding
        if there.get(key) != here.get(key)
    ]


def _deciding(config: RunConfig | RewardTraining) -> Mapping[str, object]:
    """The config's settings by dotted name, without those of a reward that decide no result."""
    dump = config.model_dump(mode="json")
    if isinstance(config, RunConfig):
        dump["reward"] = settings(config.reward)
        second = config.evaluate.second_reward
        dump["evaluate"]["second_reward"] = second and settings(second)
    return flat(dump)


def write_config(config: RunConfig | RewardTraining, folder: Path) -> None:
    """Write all settings; a folder with this file is a run."""
    files.write_text(folder / OF_RUN, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def point_to_best(config: RunConfig, policy: Path) -> None:
    """Make `best` in the run's folder a link to the best policy so far, atomically."""
    files.link(config.folder / BEST, policy)


def report_path(config: RunConfig | RewardTraining) -> Path:
    """The path of a run's report."""
    return config.folder / "report.html"


def find(name: str, runs_dir: Path, overrides: list[str] | None = None) -> RunConfig:
    """The config of a run by its name under the runs folder, or by the path of its folder.

    Raises BadInput when there is no such run.
    """
    folder = Path(name) if os.sep in name else runs_dir / name
    return read_config(folder.resolve(), overrides)


def find_round(name: str, runs_dir: Path) -> tuple[RunConfig, int | None]:
    """A run and a round of it, named as `RUN` or `RUN:ROUND`.

    Raises BadInput when there is no such run, or what follows the colon is no round's number.
    """
    run, colon, number = name.rpartition(":")
    if not colon:
        return find(name, runs_dir), None
    if not number.isdecimal():
        raise BadInput(f"{name}: expected RUN:ROUND with a round's number, such as quickstart:1.")
    return find(run, runs_dir), int(number)


def read_config(folder: Path, overrides: list[str] | None = None) -> RunConfig:
    """The config of a run on disk. Its `runs_dir` is the folder that holds the run now, so that a run can be moved.

    `overrides` are `a.b=value` strings as for `pco run`.

    Raises BadInput when there is no run here, or a reward training.
    """
    raw = _raw(folder)
    if _is_reward_training(raw):
        raise BadInput(f"{folder}: is a reward training, not a run of rounds: `pco reward train {folder / OF_RUN}`.")
    return parse(overridden(RunConfig, raw, overrides or []), source=str(folder / OF_RUN), recorded=raw)


def is_reward_training(folder: Path) -> bool:
    """Whether the run in a folder is a reward training; raises BadInput when there is no run."""
    return _is_reward_training(_raw(folder))


def _is_reward_training(raw: Mapping[str, object]) -> bool:
    return raw.get("kind") == "reward_training"


def _raw(folder: Path) -> dict[str, Any]:
    raw = of_run(folder)
    if raw is None:
        known = sorted(config.parent.name for config in folder.parent.glob(f"*/{OF_RUN}"))
        raise BadInput(f"{folder}: no run here. Runs in {folder.parent}: {', '.join(known) or 'none'}.")
    return recorded(raw, folder.parent)


def recorded(raw: Mapping[str, Any], runs_dir: Path) -> dict[str, Any]:
    """A run's settings as an earlier version may have written them, to be parsed; its folder may lie elsewhere now."""
    raw = {**raw, "runs_dir": str(runs_dir)}
    if "reward" in raw:
        raw["reward"] = as_it_was(raw["reward"])
    if isinstance(raw.get("evaluate"), dict):
        raw["evaluate"] = {**raw["evaluate"], "second_reward": as_it_was(raw["evaluate"].get("second_reward"))}
    if "train" in raw:
        raw["train"] = train.as_it_was(raw["train"])
    return raw
