"""Rows of data sets of the hub, and of folders that `datasets` can load."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.errors import BadInput

_NOT_GIVEN = "no such file, and the hub did not give it"


def rows(source: str, split: str | None, subset: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The numbered rows of a data set of the hub, or of a folder. Raises BadInput naming it."""
    try:
        yield from enumerate(_load(source, split, subset), start=1)
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


def _load(source: str, split: str | None, subset: str | None) -> Any:
    """A data set of the hub, or a folder of files or of `save_to_disk`, as an iterable of rows."""
    try:
        import datasets
    except ImportError:
        raise BadInput(
            f"{source}: no such file; and for the hub, `datasets` is not installed. Install the extra `hub`."
        ) from None
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    from huggingface_hub.utils import logging as hub_logging

    hub_logging.set_verbosity_error()  # each of its retries would be a line; the last refusal is told below
    folder = Path(source)
    if any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
        loaded: Any = datasets.load_from_disk(source)
    else:
        loaded = datasets.load_dataset(source, subset, streaming=True)
    return _choose(source, loaded, split)


def _choose(source: str, loaded: Any, split: str | None) -> Any:
    if not isinstance(loaded, dict):
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
