"""Our packages are the ones that are imported, in real processes, wherever a user has files of the same names."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from data import store
from flows.deployments import LISTED
from pco.execution import launcher
from pco.stage import Stage
from tests import builders, namesakes
from tests.namesakes import environment

pytestmark = pytest.mark.process

ENTRYPOINTS = [raw["entrypoint"] for raw in yaml.safe_load(LISTED.read_text())["deployments"]]


def ended(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A Python that was started in a folder."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=environment(**variables),
        text=True,
        capture_output=True,
        check=False,
        timeout=300,
    )


def output(folder: Path, *words: str, **variables: str) -> str:
    """What it printed; it must end well."""
    done = ended(folder, *words, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return namesakes.write(tmp_path / "user")


def test_the_files_of_the_user_do_end_whoever_imports_them(folder: Path) -> None:
    for name in ("data", "tasks", "pco", "flows"):
        assert "the user's own" in ended(folder, "-c", f"import {name}").stderr


@pytest.mark.parametrize(
    "words", [["status"], ["run", "nowhere.yaml"], ["reward", "train", "nowhere.yaml"], ["recover"]]
)
def test_a_command_in_a_folder_with_files_of_our_names_imports_none_of_them(folder: Path, words: list[str]) -> None:
    done = ended(folder, "-m", "pco_pipeline", *words, PREFECT_API_URL="http://127.0.0.1:9/api")
    told = done.stdout + done.stderr
    assert "the user's own" not in told
    assert "Traceback" not in told
    assert "Runs in" in told or "nowhere.yaml: no such config file" in told or "no answer from this" in told


def test_a_stage_process_in_a_folder_with_files_of_our_names_imports_none_of_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [builders.candidate_row("p", sample, [1, 2, 3, 1, 2, 3]) for sample in (0, 1)]
    candidates = builders.finished(tmp_path / "candidates", {"candidates": rows}, "generate")
    stage = builders.stage("score", builders.config(tmp_path), {"candidates": candidates})
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    monkeypatch.chdir(folder)
    assert launcher.run(stage) == store.read_manifest(stage.folder)


@pytest.mark.parametrize("entrypoint", ENTRYPOINTS)
def test_the_flow_of_a_deployment_is_ours_though_prefect_imports_from_the_folder_first(
    folder: Path, entrypoint: str
) -> None:
    load = "import sys; from prefect.flows import load_flow_from_entrypoint as load; print(load(sys.argv[1]).name)"
    assert output(folder, "-P", "-c", load, entrypoint).startswith("pco-")


def test_the_job_of_a_deployment_takes_nothing_from_its_folder() -> None:
    for raw in yaml.safe_load(LISTED.read_text())["deployments"]:
        assert raw["work_pool"]["job_variables"]["env"]["PYTHONSAFEPATH"] == "1"


@pytest.mark.parametrize("module", ["flows.cli", "pco_pipeline"])
def test_python_m_works_beside_a_data_a_tasks_and_a_pco_of_the_user(tmp_path: Path, module: str) -> None:
    folder = namesakes.write(tmp_path, "data.py", "tasks.py", "pco.py")
    assert "Runs in" in output(folder, "-m", module, "status")


def test_python_P_m_works_beside_all_of_them(folder: Path) -> None:  # noqa: N802  the option's own letter
    assert "Runs in" in output(folder, "-P", "-m", "flows.cli", "status")


NOTEBOOK = """
import pco
config = pco.load("package:presets/quickstart.yaml", ["run=mine"])
print(config.run, len(config.prompts.train) > 0)
"""


def test_a_notebook_works_beside_a_data_a_tasks_and_a_flows_of_the_user(tmp_path: Path) -> None:
    folder = namesakes.write(tmp_path, "data.py", "tasks.py", "flows/__init__.py")
    assert output(folder, "-c", NOTEBOOK) == "mine True\n"


def test_a_notebook_that_has_imported_its_own_data_is_told_which_file_it_was(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text("rows = 1\n")
    done = ended(tmp_path, "-c", f"import data\n{NOTEBOOK}")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError")
    assert str(tmp_path / "data.py") in last


def test_another_distribution_on_the_path_does_not_come_before_ours(tmp_path: Path) -> None:
    others = namesakes.write(tmp_path / "others", "data.py", "tasks.py")
    path = f"{others}:{environment()['PYTHONPATH']}"
    assert "Runs in" in output(tmp_path, "-m", "pco_pipeline", "status", PYTHONPATH=path)


@pytest.mark.parametrize("name", ["data", "tasks"])
def test_where_another_distribution_was_imported_first_the_first_line_names_its_file(tmp_path: Path, name: str) -> None:
    others = tmp_path / "others"
    (others / name).mkdir(parents=True)
    (others / name / "__init__.py").touch()
    (others / "sitecustomize.py").write_text(f"import {name}\n")
    path = f"{others}:{environment()['PYTHONPATH']}"
    done = ended(tmp_path, "-m", "pco_pipeline", "status", PYTHONPATH=path)
    assert done.returncode == 2
    first, *others_lines = (done.stdout + done.stderr).splitlines()
    assert others_lines == []
    for fact in (f"`{name}`", str(others / name / "__init__.py"), "PYTHONPATH"):
        assert fact in first


def test_where_stages_would_find_another_pco_the_first_line_names_its_file(tmp_path: Path) -> None:
    others = namesakes.write(tmp_path / "others", "pco.py")
    path = f"{others}:{environment()['PYTHONPATH']}"
    done = ended(tmp_path, "-m", "pco_pipeline", "status", PYTHONPATH=path)
    assert done.returncode == 2
    assert str(others / "pco.py") in (done.stdout + done.stderr).splitlines()[0]


REWARD = """
import helper
def score(candidates):
    return [helper.value for _ in candidates]
"""


def _scored(tmp_path: Path, folder: Path, function: str) -> list[float]:
    rows = [builders.candidate_row("p", sample) for sample in (0, 1)]
    candidates = builders.finished(tmp_path / "candidates", {"candidates": rows}, "generate")
    reward: dict[str, Any] = {"kind": "python", "function": function, "folder": str(folder)}
    prompts = builders.finished(tmp_path / "prompts", {"prompts": [builders.prompt_row("p")]}, "prepare")
    inputs = {"candidates": candidates, "prompts": prompts}
    stage: Stage = builders.stage("score", builders.config(tmp_path, reward=reward), inputs)
    launcher.run(stage)
    return store.read_table(stage.folder, "scores").column("reward").to_pylist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("module", ["mine", "data", "tasks"])
def test_a_reward_of_the_user_finds_what_lies_beside_it_whatever_else_does(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    (folder / f"{module}.py").write_text(REWARD)
    (folder / "helper.py").write_text("value = 3.0\n")
    (folder / "json.py").write_text("raise SystemExit('imported in place of the standard library')\n")
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    monkeypatch.chdir(folder)
    assert _scored(tmp_path, folder, f"{module}:score") == [3.0, 3.0]


def test_a_reward_that_wants_a_data_of_its_own_is_told_to_rename_it(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "mine.py").write_text("from data import my_rows\n")
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    with pytest.raises(Exception, match=r"mine\.py.*my_rows.*`data\.py`.*[Rr]ename"):
        _scored(tmp_path, folder, "mine:score")
