"""Flows in an environment without engines, stages in one without Prefect."""

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from pco.installed import STAGE_PYTHON
from pco.runs.status import RunState
from tests.e2e.conftest import Case

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(6000)]

ROOT = Path(__file__).parents[2]
HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "prefect":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
"""


@pytest.fixture(scope="module")
def flow_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment for flows alone, as the list for it says."""
    folder = tmp_path_factory.mktemp("flow")
    venv.create(folder, symlinks=True)
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", str(folder / "bin" / "python")]
    variables = {"SSL_CERT_FILE": os.environ["PIP_CERT"]} if "PIP_CERT" in os.environ else {}
    listed = [*install, "--no-deps", "-r", str(ROOT / "requirements" / "flow.txt")]
    subprocess.run(listed, check=True, env={**os.environ, **variables})
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def stage_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has what this one has, but for Prefect."""
    folder = tmp_path_factory.mktemp("stages")
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (site / "sitecustomize.py").write_text(HIDE)
    return folder / "bin" / "python"


def test_a_run_whose_flow_has_no_torch_and_whose_stages_have_no_prefect(
    make_case: Callable[..., Case], flow_python: Path, stage_python: Path
) -> None:
    case = make_case(rounds=1).under(PYTHONPATH=str(ROOT), **{STAGE_PYTHON: str(stage_python)})
    missing = subprocess.run([flow_python, "-c", "import torch"], check=False, capture_output=True, text=True)
    assert "No module named 'torch'" in missing.stderr
    hidden = subprocess.run([stage_python, "-c", "import prefect"], check=False, capture_output=True, text=True)
    assert "No module named 'prefect'" in hidden.stderr
    done = subprocess.run(
        [flow_python, "-m", "flows.cli", "run", str(case.file)],
        env=case.environment,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert RunState(case.config).is_finished
    refused = subprocess.run(
        [flow_python, "-m", "flows.cli", "run", str(case.file), "--dry-run"],
        env={name: value for name, value in case.environment.items() if name != STAGE_PYTHON},
        text=True,
        capture_output=True,
        check=False,
    )
    assert refused.returncode == 2
    assert "vllm is not installed" in refused.stderr and STAGE_PYTHON in refused.stderr
