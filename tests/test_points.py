"""A process is held or dies at the very call that would make a path, and at no other."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.points import Points

RENAME = "import os, sys; os.rename('draft', 'draft too'); os.replace('draft too', sys.argv[1])"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "draft").write_text("text")
    (tmp_path / "run").mkdir()
    return tmp_path


def start(folder: Path, path: str) -> subprocess.Popen[bytes]:
    """A process that makes a path by its last call."""
    return subprocess.Popen([sys.executable, "-c", RENAME, path], cwd=folder, start_new_session=True)


def test_a_process_waits_before_it_makes_a_path_until_the_test_lets_go(points: Points, folder: Path) -> None:
    hold = points.hold("run/made")
    process = start(folder, "run/made")
    assert hold.wait() == process.pid
    assert hold.arrived() is None, "it is told of once"
    assert [path.name for path in folder.iterdir() if path.is_file()] == ["draft too"]
    assert not (folder / "run/made").exists()
    hold.release()
    assert process.wait() == 0
    assert (folder / "run/made").exists()


def test_a_process_that_makes_another_path_does_not_wait(points: Points, folder: Path) -> None:
    hold = points.hold("run/made")
    assert start(folder, "run/unmade").wait() == 0
    assert hold.arrived() is None


@pytest.mark.parametrize("victim", ["self", "group"])
def test_a_process_dies_before_it_makes_a_path_and_the_next_does_not(points: Points, folder: Path, victim: str) -> None:
    points.kill("run/made", victim)
    assert start(folder, "run/made").wait() == -signal.SIGKILL
    assert not (folder / "run/made").exists()
    (folder / "draft too").rename(folder / "draft")
    assert start(folder, "run/made").wait() == 0
