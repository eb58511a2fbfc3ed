"""The files that a reward is made of beside its settings, and hashes of their content."""

from functools import cache
from pathlib import Path

from data import files
from data.errors import BadInput
from pco.config.reward import (
    EnsembleReward,
    JsonSchemaReward,
    JudgeReward,
    ModelReward,
    PythonReward,
    RewardConfig,
    Single,
)
from pco.models import adapters, user_code
from pco.rewards import functions, model


def named(config: RewardConfig, name: str = "reward") -> dict[str, Single]:
    """A reward by its name in the config: an ensemble's members, or the reward itself."""
    if isinstance(config, EnsembleReward):
        return {f"{name}.members.{i}": member.reward for i, member in enumerate(config.members)}
    return {name: config}


def place(part: Single) -> Path | None:
    """The file or folder that a reward names. A hub model has none: its revision identifies it."""
    match part:
        case ModelReward() if Path(part.model).is_absolute():  # a folder; see reward_config.absolute
            return Path(part.model)
        case PythonReward():
            return Path(part.folder)
        case JsonSchemaReward(file=str(file)) | JudgeReward(template=str(file)):
            return Path(file)
        case _:
            return None


def digest(part: Single) -> str | None:
    """Hash of the files that a reward is made of; None when it has none. Imports nothing; a GiB takes some 3 seconds.

    Raises BadInput when they cannot be read.
    """
    if isinstance(part, PythonReward):
        return user_code.digest(functions.named(part))
    path = place(part)
    if not isinstance(part, ModelReward) or path is None or not adapters.is_adapter(path):
        return None if path is None else _of(path)
    base = adapters.base_of(path, "reward.model")
    identity = _of(Path(base.name)) if Path(base.name).is_dir() else [base.name, base.revision]
    return files.digest({"adapter": _of(path), "base": identity})


def loaded_digest(part: Single) -> str | None:
    """As `digest`, with the files of a hub model, which are downloaded if they are not in the cache."""
    if not isinstance(part, ModelReward):
        return digest(part)
    found = model.found(part)
    if found.adapter is None:
        return _of(found.folder)
    return files.digest({"adapter": _of(found.adapter), "base": _of(found.folder)})


def _of(path: Path) -> str:
    try:
        return _of_folder(path, _stamp(path)) if path.is_dir() else files.file_digest(path)
    except OSError as error:
        raise BadInput(f"{path}: could not be read ({error.strerror}). The config's `reward` needs it.") from error


@cache
def _of_folder(folder: Path, _: tuple[tuple[str, int, int], ...]) -> str:
    """Weights are hashed once per process, and again when the size or time of a file changes."""
    return files.folder_digest(folder)


def _stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    stats = ((path.name, path.stat()) for path in sorted(folder.iterdir()))
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
