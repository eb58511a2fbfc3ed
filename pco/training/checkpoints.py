"""Checkpoints inside a training stage: what a kill in mid-training costs at most.

DeepSpeed writes model, optimizer and schedule into `checkpoints/step-N/`, every rank its share. When all have, rank 0
writes `checkpoints/step-N.json`, which makes the checkpoint valid and holds the log so far. Data order and random
numbers follow from the step's number, so nothing else is needed to go on as if nothing had happened.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import files
from data.errors import PCOError

FOLDER = "checkpoints"  # in a training stage's folder

Row = dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: `steps` steps were taken, and `log` holds a row of each."""

    folder: Path
    tag: str
    steps: int
    log: list[Row]


def save(engine: Any, folder: Path, log: list[Row], fingerprint: str, *, of: int, keep: int) -> None:
    """Write a checkpoint after `len(log)` of `of` steps, together on all ranks, and keep only the newest `keep`."""
    import torch  # not by the light processes that only look

    tag = _tag(len(log))
    _save_or_remove(engine, folder, tag)
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        files.sync_tree(folder / tag)
        content = {"fingerprint": fingerprint, "of": of, "log": log, "files": _files(folder / tag)}
        files.write_text(folder / f"{tag}.json", json.dumps(content))
        for old in _markers(folder)[:-keep]:
            _remove(old)
    torch.distributed.barrier()


def _save_or_remove(engine: Any, folder: Path, tag: str) -> None:
    """What could not be written whole is removed: the disk may be full of it."""
    try:
        engine.save_checkpoint(str(folder), tag=tag, save_latest=False)
    except (OSError, RuntimeError) as error:  # torch's writer names no cause
        shutil.rmtree(folder / tag, ignore_errors=True)
        free = shutil.disk_usage(folder).free / 2**30
        raise PCOError(
            f"{folder / tag}: the checkpoint could not be written ({error}); {free:.2f} GiB are free now. Earlier ones "
            "are intact. Make room, or lower train.keep_checkpoints, then resume."
        ) from error


def latest(folder: Path, fingerprint: str) -> Checkpoint | None:
    """The newest whole checkpoint of this very training, if there is one."""
    for marker in reversed(_markers(folder)):
        content = _read(marker)
        if content is not None and content["fingerprint"] == fingerprint:
            return Checkpoint(folder, marker.stem, len(content["log"]), content["log"])
    return None


def keep_only(folder: Path, fingerprint: str) -> None:
    """Drop checkpoints that this training cannot use; to be called before any rank reads or writes.

    Half-written or damaged ones, and those of an attempt with other settings: by their steps they would count as newer.
    """
    for marker in _markers(folder):
        content = _read(marker)
        if content is None or content["fingerprint"] != fingerprint:
            _remove(marker)
    for path in folder.glob("step-*"):
        if path.is_dir() and not path.with_suffix(".json").exists():
            shutil.rmtree(path, ignore_errors=True)


def progress(stage_folder: Path) -> tuple[int, int]:
    """How many steps an unfinished training has kept, and of how many; (0, 0) when none."""
    for marker in reversed(_markers(stage_folder / FOLDER)):
        content = _read(marker)
        if content is not None:
            return len(content["log"]), content["of"]
    return 0, 0


def _read(marker: Path) -> dict[str, Any] | None:
    """What a marker says; None if it is damaged, or the checkpoint's files are not those that were written."""
    try:
        content: dict[str, Any] = json.loads(marker.read_text(encoding="utf-8"))
        whole = content["files"] == _files(marker.with_suffix("")) and {"fingerprint", "of", "log"} <= content.keys()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return content if whole else None


def _files(folder: Path) -> dict[str, int]:
    """Names and sizes in bytes of a checkpoint's files."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def _remove(marker: Path) -> None:
    """The marker first: a folder without one is never loaded."""
    marker.unlink()
    shutil.rmtree(marker.with_suffix(""), ignore_errors=True)


def load(engine: Any, checkpoint: Checkpoint) -> None:
    """Set model, optimizer and schedule to where they were, together on all ranks."""
    engine.load_checkpoint(str(checkpoint.folder), tag=checkpoint.tag)


def remove(folder: Path) -> None:
    """Drop all checkpoints of a finished training."""
    shutil.rmtree(folder, ignore_errors=True)


def _tag(steps: int) -> str:
    return f"step-{steps:08d}"


def _markers(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.json"))
