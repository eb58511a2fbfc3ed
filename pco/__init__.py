"""Pairwise Cringe Optimization: everything that can be right or wrong. Imports neither prefect, flows nor tasks.

From Python: `load` a config, `run` or resume it, `find` a run and read its tables, `evaluate` policies (docs/api.md).
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

from pco_pipeline import check, come_first

if TYPE_CHECKING:
    from pco.api import Run, evaluate, find, load, run, test

    __version__: str

__all__ = ["Run", "__version__", "evaluate", "find", "load", "run", "test"]

come_first()  # a notebook's folder may hold a `data.py` of the user's


def __getattr__(name: str) -> Any:
    """The public names when they are first used: `import pco` alone loads nothing."""
    if name == "__version__":
        return metadata.version("pco-pipeline")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    check()
    return getattr(import_module("pco.api"), name)
