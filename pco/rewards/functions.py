"""A reward that is a Python function of the user's."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from data.errors import BadInput
from pco.config.reward import PythonReward
from pco.rewards.scores import Candidates, Score, Scorer


def source(config: PythonReward) -> Path:
    """The file that holds the function, found without running any of it.

    Raises BadInput when there is none.
    """
    module = config.function.partition(":")[0]
    importlib.invalidate_caches()
    where: list[str] | None = [config.folder, *sys.path]
    origin, names = None, module.split(".")
    for i in range(len(names)):
        spec = PathFinder.find_spec(".".join(names[: i + 1]), where)
        origin, where = (spec.origin, list(spec.submodule_search_locations or [])) if spec else (None, [])
    if origin is None or not origin.endswith(".py"):
        raise BadInput(
            f"reward.function: no Python file for the module `{module}` in {config.folder} or among the installed "
            "packages. Set reward.folder to the folder that holds it."
        )
    return Path(origin)


def function(config: PythonReward) -> Callable[[list[Any]], Any]:
    """The function itself; its module is run now.

    Raises BadInput when the module cannot be imported or has no such function.
    """
    path = source(config)
    module, _, name = config.function.partition(":")
    if config.folder not in sys.path:
        sys.path.append(config.folder)  # for what the module itself imports
    # From this very file, whatever else has the module's name.
    spec = importlib.util.spec_from_file_location(module, path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    namesake = sys.modules.get(module)
    sys.modules[module] = loaded  # dataclasses, for one, look their module up while it is run
    try:
        spec.loader.exec_module(loaded)
    except (Exception, SystemExit) as error:  # whatever the user's code does
        raise BadInput(
            f"{path}: could not be imported for reward.function {config.function} ({type(error).__name__}: {error})."
        ) from error
    finally:
        if namesake is not None:
            sys.modules[module] = namesake
    found = getattr(loaded, name, None)
    if not callable(found):
        raise BadInput(f"{path}: has no function `{name}`, which reward.function {config.function} names.")
    return found  # type: ignore[no-any-return]


def scorer(config: PythonReward) -> Scorer:
    """A scorer that calls the function with lists of candidates and checks that it returns one number for each."""
    judge = function(config)

    def score(candidates: Candidates) -> list[Score]:
        if not candidates:
            return []
        try:
            values = judge([dict(row) for row in candidates])
        except Exception as error:
            raise BadInput(
                f"reward.function {config.function}: failed on {len(candidates)} candidates "
                f"({type(error).__name__}: {error})."
            ) from error
        return [Score(value) for value in _checked(values, len(candidates), config)]

    return score


def _checked(values: object, count: int, config: PythonReward) -> list[float]:
    wanted = f"reward.function {config.function}: expected a list of {count} numbers, one per candidate;"
    if not isinstance(values, list | tuple):
        raise BadInput(f"{wanted} it returned {type(values).__name__}.")
    if len(values) != count:
        raise BadInput(f"{wanted} it returned {len(values)}.")
    return [_number(value, f"{wanted} number {i + 1} is {value!r}.") for i, value in enumerate(values)]


def _number(value: object, message: str) -> float:
    """A float, an int, or what turns into one as numpy's numbers do; text and lists do not, and True is no number."""
    if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
        raise BadInput(message)
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadInput(message) from error
