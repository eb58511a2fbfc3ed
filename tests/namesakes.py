"""A user's folder with files of its own that have the names of our packages."""

import os
from pathlib import Path

FILES = ("data.py", "tasks.py", "pco.py", "flows/__init__.py")


def write(folder: Path, *files: str) -> Path:
    """Files that end whoever imports them; all of them unless some are named."""
    for file in files or FILES:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"raise SystemExit('the user\\'s own {file} was imported')\n")
    return folder


def environment(**variables: str) -> dict[str, str]:
    """The environment of a user: our packages are installed, and no folder is added to the path of imports."""
    root = Path(__file__).parents[1]
    return {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "COLUMNS": "200", **variables}
