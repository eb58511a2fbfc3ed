"""What a reward is made of beside its settings: files that may change, and hashes of what they hold."""

from functools import cache
from pathlib import Path

from data import store
from data.errors import BadInput
from pco.reward_config import JsonSchemaReward, ModelReward, PythonReward, RewardConfig, Single, parts
from pco.rewards import functions, model


def places(config: RewardConfig) -> list[Path]:
    """The files and folders that the config names; a hub model has none, its revision stands for it."""
    return [place for part in parts(config) if (place := _place(part)) is not None]


def _place(part: Single) -> Path | None:
    match part:
        case ModelReward() if Path(part.model).is_absolute():  # a folder; see reward_config.absolute
            return Path(part.model)
        case PythonReward():
            return Path(part.folder)
        case JsonSchemaReward(file=str(file)):
            return Path(file)
        case _:
            return None


def digests(config: RewardConfig, *, fetch: bool = False) -> list[str]:
    """Hashes of what these places hold, in the order of the config. Imports nothing; a GiB takes about a second.

    `fetch` adds the files of hub models, which are downloaded if need be.

    Raises BadInput when one cannot be read.
    """
    return [_digest(path) for part in parts(config) if (path := _source(part, fetch)) is not None]


def _source(part: Single, fetch: bool) -> Path | None:
    match part:
        case PythonReward():
            return functions.source(part)
        case ModelReward() if fetch:
            return model.folder(part)
        case _:
            return _place(part)


def _digest(path: Path) -> str:
    try:
        return _of_folder(path, _stamp(path)) if path.is_dir() else store.file_digest(path)
    except OSError as error:
        raise BadInput(f"{path}: could not be read ({error.strerror}). The config's `reward` needs it.") from error


@cache
def _of_folder(folder: Path, _: tuple[tuple[str, int, int], ...]) -> str:
    """Weights are hashed once per process, and again when a file's size or time changed."""
    return store.folder_digest(folder)


def _stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    found = ((path.name, path.stat()) for path in sorted(folder.iterdir()))
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)
