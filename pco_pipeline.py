"""Where a process of ours begins: makes sure that our packages are the ones that are imported.

`data`, `tasks`, `flows` and `pco` are names that the user's own files or another distribution may have, too, and Python
takes whatever comes first on its path. This module has a name that nobody else has, and imports none of the four before
it has seen to that. `pco` is its `main`; the deployments of `flows/prefect.yaml` find their flows here.
"""

import base64
import hashlib
import sys
from importlib import import_module, metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent
PACKAGES = ("flows", "tasks", "pco", "data")

# Prefect puts the folder in which a flow runs before everything else, so the flows of deployments are named here.
_FLOWS = {
    "start": "flows.form",
    "next_round": "flows.form",
    "train_reward": "flows.form",
    "run_rounds": "flows.rounds",
    "evaluate_policies": "flows.comparison",
    "compare_policies": "flows.comparison",
    "recover_runs": "flows.recover",
}


class OwnPackages:
    """Finds our packages beside this file, whatever else the import path holds under their names."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """What Python's import system asks for."""
        return PathFinder.find_spec(name, [str(ROOT)]) if name in PACKAGES else None


def come_first() -> None:
    """From now on an import of one of our packages gives ours."""
    if OwnPackages not in sys.meta_path:
        sys.meta_path.insert(0, OwnPackages)


def check() -> None:
    """Raise ImportError, which says what to do, where another module has taken the place of one of our packages."""
    for name in PACKAGES:
        imported = sys.modules.get(name)
        where = getattr(imported, "__file__", None) or "a folder without an __init__.py"
        if imported is not None and where != str(ROOT / name / "__init__.py"):
            raise ImportError(
                f"`{name}` was imported from {where} before pco could import its own package of that name. Rename that "
                "file or take it off PYTHONPATH, or import pco first."
            )
    _check_installed()


def _check_installed() -> None:
    """Two distributions with a package of one name share its folder, and the later one writes over the earlier."""
    try:
        files = metadata.distribution("pco-pipeline").files or []
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return
    ours = {f"{name}/__init__.py" for name in PACKAGES}
    for file in files:
        if str(file) not in ours or file.hash is None:
            continue
        path = Path(str(file.locate()))
        if not path.exists() or _digest(path) != file.hash.value:
            raise ImportError(
                f"{path}: is not the file that pco installed. Another distribution has a package of that name. Install "
                "pco into an environment of its own."
            )


def _digest(path: Path) -> str:
    """As an installer's RECORD has it."""
    return base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).rstrip(b"=").decode()


def __getattr__(name: str) -> Any:
    if name not in _FLOWS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    come_first()
    check()
    return getattr(import_module(_FLOWS[name]), name)


def main() -> None:
    """The `pco` command."""
    come_first()
    try:
        check()
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    import_module("flows.cli").app()


if __name__ == "__main__":
    main()
