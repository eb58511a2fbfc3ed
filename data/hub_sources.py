"""Rows of data sets of the hub, and of folders that `datasets` can load."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import BadInput

_NOT_GIVEN = "no such file, and the hub did not give it"
_SAVED = ("state.json", "dataset_dict.json")  # one of them is in a folder of `save_to_disk`


@dataclass(frozen=True)
class HubRows:
    """The numbered rows of a data set, to be read once."""

    rows: Iterator[tuple[int, dict[str, Any]]]
    commit: str | None
    """Of the hub's repository that is read; None of a folder."""


def open_data_set(source: str, *, split: str | None, subset: str | None, revision: str | None) -> HubRows:
    """A data set of the hub, at a branch, tag or commit of its repository, or a folder.

    Raises BadInput naming it, here or while the rows are read.
    """
    with _errors(source):
        loaded, commit = _load(source, subset, revision)
        chosen = _choose(source, loaded, split)
    return HubRows(_numbered(source, chosen), commit)


def _numbered(source: str, data_set: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    with _errors(source):
        yield from enumerate(data_set, start=1)


@contextmanager
def _errors(source: str) -> Iterator[None]:
    try:
        yield
    except BadInput:
        raise
    except (
        Exception
    ) as error:  # `datasets` and what it stands on raise whatever they like; all of it is about the source
        what = "`datasets` cannot load this folder" if Path(source).is_dir() else _NOT_GIVEN
        raise BadInput(
            f"{source}: {what} ({first_line(error)}). Name an existing file, or a data set that this machine may "
            "read as `owner/name`."
        ) from error


def _load(source: str, subset: str | None, revision: str | None) -> tuple[Any, str | None]:
    """A data set of the hub, or a folder of files or of `save_to_disk`, as an iterable of rows, and its commit."""
    import datasets
    from datasets.packaged_modules.cache.cache import Cache

    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    from huggingface_hub.utils import logging as hub_logging

    hub_logging.set_verbosity_error()  # each of its retries would be a line; the last refusal is told below
    folder = Path(source)
    if revision and folder.is_dir():
        raise BadInput(f"{source}: a revision belongs to a data set of the hub; a folder has none.")
    if any((folder / name).is_file() for name in _SAVED):
        if subset:
            raise BadInput(f"{source}: a folder of `save_to_disk` has no subset. Leave `{subset}` out.")
        return datasets.load_from_disk(source), None
    builder = datasets.load_dataset_builder(source, subset, revision=revision)
    if folder.is_dir():
        return builder.as_streaming_dataset(), None
    if isinstance(builder, Cache) and revision not in {None, builder.hash}:
        raise BadInput(
            f"{source}: the hub cannot be reached, and the cache holds commit {builder.hash}, which may not be "
            f"{revision}. Name that commit, or fetch the data set."
        )
    return builder.as_streaming_dataset(), builder.hash


def _choose(source: str, loaded: Any, split: str | None) -> Any:
    if not isinstance(loaded, dict):
        if split:
            raise BadInput(f"{source}: has no splits. Leave `{split}` out.")
        return loaded
    names = ", ".join(loaded)
    if split is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    if split is None:
        raise BadInput(f"{source}: has the splits {names}. Choose one with --split.")
    if split not in loaded:
        raise BadInput(f"{source}: has no split {split}. There are: {names}.")
    return loaded[split]


def first_line(error: Exception) -> str:
    """What an error of a library says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
