"""Every example, run as its text says, with the real engines."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pco
from tests.e2e.small import OVERRIDES, SETS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the examples, since runs are made beside them."""
    return shutil.copytree(EXAMPLES, tmp_path / "examples")


def _output(folder: Path, *words: str) -> str:
    root = str(EXAMPLES.parent)
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "PREFECT_HOME": str(folder / ".prefect")}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _command(folder: Path, run: str) -> list[str]:
    """The setting that the examples' page gives for a run."""
    page = (folder / "README.md").read_text()
    (setting,) = re.findall(rf"pco quickstart --set run={run} +--set '(.+)'", page)
    return ["-m", "pco_pipeline", "quickstart", "--set", f"run={run}", "--set", setting]


def test_a_reward_of_ones_own_scores_the_candidates(folder: Path, roomy: Path) -> None:
    _output(folder, *_command(folder, "own-reward"), "--model", str(roomy), *SETS)
    run = pco.find(folder / "runs" / "own-reward")
    scores = run.table("scores", round=1).to_pandas().set_index(["prompt_id", "sample"])["reward"]
    for row in run.table("candidates", round=1, stage="generate").to_pylist():
        words = row["completion"].split()
        shouted = [word for word in words if word.isupper() and len(word) > 1]
        assert scores[row["prompt_id"], row["sample"]] == pytest.approx(-abs(len(words) - 20) / 20 - len(shouted))


def test_a_loss_of_ones_own_trains_the_policy(folder: Path, roomy: Path) -> None:
    _output(folder, *_command(folder, "own-loss"), "--model", str(roomy), *SETS)
    run = pco.find(folder / "runs" / "own-loss")
    losses = run.table("train_log", round=1).column("loss").to_pylist()
    assert losses
    assert all(loss >= 0 for loss in losses)
    assert len(run.promoted) == 1


def test_a_run_from_python_tells_what_its_tables_hold_and_resumes(folder: Path, roomy: Path) -> None:
    words = ["run_from_python.py", "package:presets/quickstart.yaml", f"policy.model={roomy}", *OVERRIDES]
    told = _output(folder, *words)
    assert re.search(r"^Round 1: \d+ pairs with a mean margin of [\d.]+\. Promoted: (True|False)\.", told, re.MULTILINE)
    assert str(folder / "runs" / "quickstart" / "report.html") in told
    parts = {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*.parquet")}
    assert parts
    _output(folder, *words)
    assert {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*.parquet")} == parts
