"""A Python function of the user's that a config names: its file, the hash of that, and the function itself."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from data import files
from data.errors import BadInput
from pco_pipeline import PACKAGES


@dataclass(frozen=True)
class UserFunction:
    """A function as a config names it."""

    section: str  # the config's section that names it, for messages: `reward`, `train.loss`
    module: str
    name: str
    folder: str  # looked through before the installed packages

    @property
    def title(self) -> str:
        """How messages call it."""
        return f"{self.section}.function {self.module}:{self.name}"


def source(function: UserFunction) -> Path:
    """The file that holds the function, found without running any of it.

    Raises BadInput when there is none.
    """
    importlib.invalidate_caches()
    where: list[str] | None = [function.folder, *sys.path]
    origin, names = None, function.module.split(".")
    for i in range(len(names)):
        spec = PathFinder.find_spec(".".join(names[: i + 1]), where)
        origin, where = (spec.origin, list(spec.submodule_search_locations or [])) if spec else (None, [])
    if origin is None or not origin.endswith(".py"):
        raise BadInput(
            f"{function.section}.function: no Python file for the module `{function.module}` in {function.folder} or "
            f"among the installed packages. Set {function.section}.folder to the folder that holds it."
        )
    return Path(origin)


def digest(function: UserFunction) -> str:
    """Hash of the file that holds the function, not of what that imports.

    Raises BadInput when there is none or it cannot be read.
    """
    path = source(function)
    try:
        return files.file_digest(path)
    except OSError as error:
        section = function.section
        raise BadInput(f"{path}: could not be read ({error.strerror}). The config's `{section}` needs it.") from error


def load(function: UserFunction) -> Callable[..., Any]:
    """The function itself; its module is run now.

    Raises BadInput when the module cannot be imported or has no such function.
    """
    path, module = source(function), function.module
    if function.folder not in sys.path:
        sys.path.append(function.folder)  # for what the module itself imports
    # From exactly this file, even if another module has the same name.
    spec = importlib.util.spec_from_file_location(module, path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    namesake = sys.modules.get(module)
    sys.modules[module] = loaded  # dataclasses, for one, look their module up while it is run
    try:
        spec.loader.exec_module(loaded)
    except (Exception, SystemExit) as error:  # whatever the user's code does
        raise BadInput(
            f"{path}: could not be imported for {function.title} ({type(error).__name__}: {error})."
            f"{_names_of_ours(Path(function.folder))}"
        ) from error
    finally:
        if namesake is not None:
            sys.modules[module] = namesake
    attribute = getattr(loaded, function.name, None)
    if not callable(attribute):
        raise BadInput(f"{path}: has no function `{function.name}`, which {function.title} names.")
    return attribute  # type: ignore[no-any-return]


def _names_of_ours(folder: Path) -> str:
    """Advice where the folder holds what its modules cannot import: in this process our packages have those names."""
    hidden = [f"`{name}.py`" for name in PACKAGES if (folder / f"{name}.py").exists()]
    return f" pco has packages named as {', '.join(hidden)} here; rename yours to import it." if hidden else ""
