"""Room on disk: refuse a stage that would fill it, before hours of work end in a file that cannot be written."""

import math
import shutil
from pathlib import Path
from typing import Any

from data import store
from data.errors import PCOError
from pco.config.train import Training
from pco.models import weights
from pco.stage import Stage
from pco.training import checkpoints

_LEAST = 100 * 2**20  # tables, logs, the report
# AdamW keeps two float32 numbers per parameter, and a float32 copy of the weights when these are bf16.
OPTIMIZER_BYTES = {"fp32": 8, "bf16": 12}
WEIGHT_BYTES = {"fp32": 4, "bf16": 2}


def check(stage: Stage[Any]) -> None:
    """Raise PCOError if what the stage is about to write would not fit; nothing has been started or changed by then."""
    free = shutil.disk_usage(stage.config.folder).free
    if free < needed(stage):
        raise PCOError(
            f"{stage.config.folder}: {stage.title} may need {needed(stage) / 2**30:,.2f} GiB of disk, and only "
            f"{free / 2**30:,.2f} GiB are free. Make room, then resume; nothing is lost. A training "
            "needs less with a lower train.keep_checkpoints or a higher train.checkpoint_steps."
        )


def needed(stage: Stage[Any]) -> int:
    """Bytes that a stage may write beyond what it has, roughly and rather too many."""
    if not stage.spec.model:
        return _LEAST
    # What an earlier attempt wrote is used, written over, or removed first.
    had = _size(stage.folder / checkpoints.FOLDER) + sum(map(_size, _trained_folders(stage)))
    manifest = store.read_manifest(stage.inputs["pairs"].folder)
    pairs = sum(part.rows for part in manifest.parts) if manifest else 0
    trained, kept = of_training(
        weights.parameters(stage.inputs[stage.spec.begins_with].folder), stage.config.train, pairs
    )
    return _LEAST + max(0, trained + kept - had)


def _trained_folders(stage: Stage[Any]) -> list[Path]:
    """Where a training's result lies, and where it is written."""
    folder = stage.model_folder
    return [folder, folder.with_name(f".{folder.name}.tmp")]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def of_training(parameters: int, train: Training, pairs: int) -> tuple[int, int]:
    """Bytes for the trained model, and for all checkpoints that exist at one time while it is trained."""
    weights = parameters * WEIGHT_BYTES[train.precision]
    optimizer = 0 if train.lora else parameters * OPTIMIZER_BYTES[train.precision]
    written = (math.ceil(pairs / train.pairs_per_step) * train.epochs - 1) // train.checkpoint_steps
    # One more than are kept: the oldest goes when the newest is complete.
    return weights, max(0, min(train.keep_checkpoints + 1, written)) * (weights + optimizer)
