"""pco as people install it: a wheel in an environment of its own, far from any checkout, in a folder of the user's."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import yaml

from tests import namesakes
from tests.e2e.small import SETS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel, and what it depends on."""
    folder = tmp_path_factory.mktemp("installed")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    source = folder / "source"
    source.mkdir()
    # A copy, as the builder writes into its folder; links are kept as a checkout has them.
    subprocess.run(
        ["cp", "--parents", "--no-dereference", *os.fsdecode(listed).split("\0")[:-1], source], cwd=ROOT, check=True
    )
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source))
    venv.create(folder / "venv", symlinks=True)
    interpreter = folder / "venv" / "bin" / "python"
    # By a .pth file, not as site packages: what is installed there as a checkout stays out.
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (wheel,) = folder.glob("*.whl")
    _pip("--python", str(interpreter), "install", "--no-deps", str(wheel))
    return interpreter


def _pip(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *words], check=True)


def _run(folder: Path, *command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PREFECT_API_URL"}}
    environment = {
        **kept,
        "PREFECT_HOME": str(folder / ".prefect"),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
        **variables,
    }
    return subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, check=False)


def test_the_quickstart_runs_in_a_folder_with_files_of_our_names(python: Path, roomy: Path, tmp_path: Path) -> None:
    folder = namesakes.write(tmp_path)
    done = _run(folder, python.with_name("pco"), "quickstart", "--model", str(roomy), *SETS)
    assert done.returncode == 0, done.stdout + done.stderr
    run = folder / "runs" / "quickstart"
    assert f"Report: {run / 'report.html'}" in done.stdout
    assert (run / "report.html").exists()
    config = yaml.safe_load((run / "config.yaml").read_text())
    installed = str(python.parents[1])
    assert all(config["prompts"][name].startswith(installed) for name in ("train", "heldout", "heldout_text"))
    again = _run(folder, python.with_name("pco"), "resume", "quickstart")
    assert again.returncode == 0, again.stdout + again.stderr


def test_the_quickstart_unpacks_its_model_into_the_cache_once(python: Path, tmp_path: Path) -> None:
    words = [python.with_name("pco"), "quickstart", "--dry-run"]
    first = _run(tmp_path, *words, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert first.returncode == 0, first.stdout + first.stderr
    model = tmp_path / "cache" / "pco" / "smollm2-135m-instruct"
    assert f"Model: {model}" in first.stdout
    assert (model / "model.safetensors").exists()
    assert "Would run 2 round(s)" in first.stdout
    second = _run(tmp_path, *words, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert second.returncode == 0, second.stdout + second.stderr
    assert "Model:" not in second.stdout


def test_every_preset_and_every_form_is_in_the_wheel(python: Path, roomy: Path, tmp_path: Path) -> None:
    words = ["run", "package:presets/repetition.yaml", "--dry-run", "--set", f"policy.model={roomy}", *SETS]
    done = _run(tmp_path, python.with_name("pco"), *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Would run 1 round(s)" in done.stdout
    code = (
        "from typing import get_args; from flows import form, deployments; from pco.config.run import load;"
        "print([load(form.preset_file(name)).run for name in get_args(form.Preset)], deployments.LISTED.is_file())"
    )
    assert _run(tmp_path, python, "-c", code).stdout == "['quickstart', 'repetition', 'instructions'] True\n"


def test_the_installed_version_and_the_api_are_there(python: Path, tmp_path: Path) -> None:
    code = "import pco, sys; print(pco.__version__, 'torch' in sys.modules, pco.load, pco.run, pco.find, pco.evaluate)"
    told = _run(tmp_path, python, "-c", code).stdout
    assert told.startswith("0.1.0 False")


def test_a_package_that_another_distribution_wrote_over_is_named_in_the_first_line(
    python: Path, tmp_path: Path
) -> None:
    (package,) = python.parents[1].glob("lib/python*/site-packages/data/__init__.py")
    ours = package.read_text()
    try:
        package.write_text("raise SystemExit('another distribution')\n")
        done = _run(tmp_path, python.with_name("pco"), "status")
    finally:
        package.write_text(ours)
    assert done.returncode == 2
    assert str(package) in (done.stdout + done.stderr).splitlines()[0]
    assert _run(tmp_path, python.with_name("pco"), "status").returncode == 0
