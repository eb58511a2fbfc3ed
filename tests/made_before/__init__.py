"""Runs that earlier versions made; tests/pco/test_made_before.py says how."""

import tarfile
from pathlib import Path

FOLDER = Path(__file__).parent


def runs(folder: Path) -> Path:
    """The folder of both runs, `finished` and the other, as if they had been made in `folder`."""
    with tarfile.open(FOLDER / "runs.tar.gz") as archive:
        archive.extractall(folder / "runs", filter="data")
    for path in [*folder.rglob("*.json"), *folder.rglob("*.yaml")]:
        path.write_text(path.read_text(encoding="utf-8").replace("@ROOT@", str(folder)), encoding="utf-8")
    return folder / "runs"
