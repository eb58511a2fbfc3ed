"""What the machine is told to be, by its driver and its system's files alone."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from pco import hardware, installed

AMX = "flags\t\t: fpu avx512f avx512_bf16 amx_bf16 amx_tile\n"
ZEN = "model name\t: A CPU\nflags\t\t: fpu avx512f avx512_bf16\nmodel name\t: A CPU\n"
OLD = "flags\t\t: fpu avx2 avx512f avx512_vnni\n"


def machine(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    cpu: str | None = OLD,
    driver: str | None = None,
    torch: str | None = "2.13.0",
) -> None:
    """Pretend a machine: the text of its cpuinfo, a script in place of the driver's program, and torch's version."""
    if cpu is not None:
        (folder / "cpuinfo").write_text(cpu)
    monkeypatch.setattr(hardware, "CPU", folder / "cpuinfo")
    if driver is not None:
        (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{driver}\n")
        (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def version(name: str) -> str:
        if torch is None:
            raise PackageNotFoundError(name)
        return torch

    monkeypatch.setattr(installed.metadata, "version", version)


@pytest.mark.parametrize(
    ("cpu", "expected", "said"),
    [
        (AMX, "bf16", "amx_bf16"),
        (ZEN, "bf16", "avx512_bf16"),
        (OLD, "fp32", "neither amx_bf16 nor avx512_bf16"),
        ("flags : fpu not_amx_bf16_at_all\n", "fp32", "neither"),
        (None, "fp32", "neither"),
    ],
)
def test_a_cpu_has_bf16_where_it_multiplies_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu: str | None, expected: str, said: str
) -> None:
    machine(tmp_path, monkeypatch, cpu=cpu, torch="2.13.0+cpu")
    chosen, reason = hardware.number_format()
    assert chosen == expected
    assert said in reason


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["0", "1", "3"]),
        ("3, 0", ["3", "0"]),
        ("GPU-8f0a,MIG-1b", ["GPU-8f0a", "MIG-1b"]),
        ("0,1,", ["0", "1"]),
        ("1,-1,0", ["1"]),
        ("", []),
        ("-1", []),
    ],
)
@pytest.mark.process
def test_gpus_are_those_that_are_visible_by_the_names_that_cuda_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: list[str]
) -> None:
    machine(tmp_path, monkeypatch, driver="echo 0; echo 1; echo 3")
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert hardware.gpus() == expected


@pytest.mark.parametrize(
    ("driver", "expected", "said"),
    [
        ("echo 9.0", "bf16", "compute capability 9.0"),
        ("echo 9.0; echo 7.5", "fp32", "compute capability 7.5"),
        ("echo '[N/A]'", "fp32", "its CPU"),
        ("exit 9", "fp32", "its CPU"),
    ],
)
@pytest.mark.process
def test_a_gpu_goes_before_the_cpu_and_the_oldest_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: str, expected: str, said: str
) -> None:
    machine(tmp_path, monkeypatch, driver=driver)
    chosen, reason = hardware.number_format()
    assert chosen == expected
    assert said in reason


def test_torch_for_amds_gpus_has_bf16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(tmp_path, monkeypatch, torch="2.13.0+rocm7.0")
    assert hardware.number_format()[0] == "bf16"


def test_the_cpus_name_is_that_of_the_first_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(tmp_path, monkeypatch, cpu=ZEN)
    assert hardware.cpu() == "A CPU"


@pytest.mark.parametrize(("script", "expected"), [("echo 24576; echo 81559", 24576 * 2**20), ("exit 9", None)])
@pytest.mark.process
def test_the_smallest_gpu_counts_and_a_driver_that_does_not_answer_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, expected: int | None
) -> None:
    machine(tmp_path, monkeypatch, driver=script, torch="2.13.0+cu130")
    assert hardware.gpu_memory() == expected


@pytest.mark.parametrize(
    ("version", "visible", "used"),
    [
        ("2.13.0+cu130", None, True),
        ("2.13.0", "0", True),
        ("2.13.0+cpu", None, False),
        ("2.13.0", "", False),
        ("2.13.0", "-1", False),
        (None, None, False),
    ],
)
@pytest.mark.process
def test_a_gpu_that_torch_does_not_use_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str | None, visible: str | None, used: bool
) -> None:
    machine(tmp_path, monkeypatch, driver="echo 24576", torch=version)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert (hardware.gpu_memory() is not None) == used
