"""The environment of stages, told by its own Python where it is another one."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from data.errors import BadInput
from pco import hardware, installed, rewards
from pco.config.reward import PythonReward
from pco.config.train import PythonLoss
from pco.doctor import checks, environments
from pco.doctor.inputs import Inputs
from pco.installed import STAGE_PYTHON, Environment
from tests import builders

HERE = installed.of_this_process()


def apart(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> str:
    """Have stages run under a program; returns its path."""
    program = folder / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv(STAGE_PYTHON, str(program))
    return str(program)


def telling(folder: Path, monkeypatch: pytest.MonkeyPatch, there: Environment) -> str:
    """Have stages run in an environment of which its Python says this."""
    (folder / "answer").write_text(json.dumps(asdict(there)))
    return apart(folder, monkeypatch, f"echo a line of a library; cat {folder / 'answer'}")


@pytest.mark.parametrize("value", ["", sys.executable])
def test_stages_run_under_the_python_of_the_flow_by_default(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(STAGE_PYTHON, value)
    assert not installed.is_apart()
    assert installed.python() == sys.executable
    assert installed.of_stages() == HERE
    assert installed.differences() == []


@pytest.mark.parametrize("value", ["python3", "/nowhere/python", "/tmp"])
def test_what_is_no_program_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(STAGE_PYTHON, value)
    with pytest.raises(BadInput, match=f"{STAGE_PYTHON}: {value} is no program"):
        installed.python()


@pytest.mark.process
@pytest.mark.parametrize(
    ("script", "said"),
    [("echo No module named pco >&2; exit 1", "No module named pco"), ("echo hello", "could not say"), ("", "could")],
)
def test_a_python_without_pco_is_refused_with_what_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    program = apart(tmp_path, monkeypatch, script)
    with pytest.raises(BadInput, match=said) as error:
        installed.of_stages()
    assert program in str(error.value)
    assert "extra `cpu` or `gpu`" in str(error.value)


@pytest.mark.process
def test_engines_and_versions_are_those_of_the_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = replace(HERE, modules=["deepspeed"], versions={"torch": "2.13.0+rocm7.1"})
    telling(tmp_path, monkeypatch, there)
    assert (installed.has("deepspeed"), installed.has("vllm")) == (True, False)
    assert installed.version("torch") == "2.13.0+rocm7.1"
    assert installed.version("vllm") is None
    assert hardware.number_format()[1].startswith("torch is for AMD's GPUs")


def test_of_a_package_that_is_there_twice_the_version_counts_that_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "numpy-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 0.1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert installed.of_this_process.__wrapped__().versions["numpy"] == installed.version("numpy") == "0.1"


@pytest.mark.process
def test_another_pco_is_a_fault_and_another_library_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = Inputs(builders.config(tmp_path))
    program = telling(tmp_path, monkeypatch, replace(HERE, versions={**HERE.versions, "pyarrow": "1.0"}))
    (status, warning), (ok, message) = environments.examine(inputs)
    assert (status, ok) == ("warning", "ok")
    assert f"pyarrow {HERE.versions['pyarrow']} here, 1.0 there" in warning
    assert "numpy" not in warning
    assert program in message
    other = tmp_path / "other"
    other.mkdir()
    telling(other, monkeypatch, replace(HERE, code="0" * 16, folder="/srv/old"))
    with pytest.raises(BadInput, match=r"\(/srv/old\) is not that of the flow"):
        list(environments.examine(inputs))


@pytest.mark.process
def test_code_of_the_user_is_left_to_the_environment_that_runs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("import a_module_of_stages_alone\n")
    reward = PythonReward(kind="python", function="mine:reward", folder=str(tmp_path))
    with pytest.raises(BadInput, match="a_module_of_stages_alone"):
        rewards.check(reward, {})
    telling(tmp_path, monkeypatch, HERE)
    rewards.check(reward, {})
    loss = PythonLoss(module="mine", function="loss", folder=str(tmp_path)).model_dump()
    told = checks.CHECKS["loss"](Inputs(builders.config(tmp_path, train__loss=loss)))
    assert "mine:loss is tried when the run begins" in told
