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
    "make_study": "flows.studies",
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
        where = getattr(imported, "__file__", None)
        if imported is not None and not _is_ours(name, where):
            raise ImportError(
                f"`{name}` was imported from {where or imported} before pco could import its own package of that name. "
                "Rename that file or take it off PYTHONPATH, or import pco first."
            )
    _check_stages()
    _check_installed()


def _check_stages() -> None:
    """The processes of stages are started by the name of a module in `pco`, which no finder precedes there."""
    begins_with_folder = not sys.flags.safe_path  # of the command; stages never look into it
    spec = PathFinder.find_spec("pco", [entry for entry in sys.path[begins_with_folder:] if entry])
    if spec is not None and spec.origin is not None and not _is_ours("pco", spec.origin):
        raise ImportError(
            f"stages would import `pco` from {spec.origin}, not from {ROOT}. Take its folder off PYTHONPATH, or "
            "install pco into an environment of its own."
        )


def _is_ours(name: str, file: str | None) -> bool:
    return file is not None and Path(file).resolve() == (ROOT / name / "__init__.py").resolve()


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
