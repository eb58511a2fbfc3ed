"""The import rules of `pyproject.toml` can fail: each is broken in a copy of the packages, and noticed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("flows", "tasks", "pco", "data")

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages and their rules."""
    folder = tmp_path_factory.mktemp("copy")
    for name in PACKAGES:
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "quickstart", "presets")
        )
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@pytest.mark.parametrize(
    ("module", "statement", "contract"),
    [
        ("pco/losses/preference.py", "from pco.training import loop", "the rooms of pco, one way"),
        ("pco/rewards/scores.py", "from pco.training import batches", "the rooms of pco, one way"),
        ("pco/progress.py", "from flows import console", "flows -> tasks -> pco -> data, one way"),
        ("pco/rounds.py", "import prefect", "pco and data know nothing of prefect"),
        ("tasks/views.py", "import torch", "the flow's process imports no heavy library"),
    ],
)
def test_an_import_against_the_rules_is_noticed(copy: Path, module: str, statement: str, contract: str) -> None:
    path = copy / module
    before = path.read_text(encoding="utf-8")
    path.write_text(f"{before}\n{statement}\n", encoding="utf-8")
    try:
        result = _lint(copy)
    finally:
        path.write_text(before, encoding="utf-8")
    assert result.returncode == 1, result.stdout
    assert f"{contract} BROKEN" in result.stdout


def test_a_new_room_must_be_given_its_place(copy: Path) -> None:
    (copy / "pco" / "cellar").mkdir()
    (copy / "pco" / "cellar" / "__init__.py").touch()
    try:
        result = _lint(copy)
    finally:
        shutil.rmtree(copy / "pco" / "cellar")
    assert result.returncode == 1
    assert "pco.cellar" in result.stdout


def _lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"}
    return subprocess.run(command, cwd=folder, env=environment, check=False, capture_output=True, text=True)
