"""What this machine computes with, told in milliseconds: importing torch to ask it would take too long for a check."""

import os
import platform
import shutil
import subprocess
from itertools import takewhile
from pathlib import Path
from typing import Literal

from pco import installed

CPU = Path("/proc/cpuinfo")
_BF16_GPU = 8.0  # compute capability from which NVIDIA's GPUs multiply bfloat16
_BF16_CPU = ("amx_bf16", "avx512_bf16")  # oneDNN's matrix products use either


def number_format() -> tuple[Literal["bf16", "fp32"], str]:
    """The faster format for weights and activations on this machine, and why: bf16 where hardware multiplies it."""
    if is_for_amd():
        return "bf16", "torch is for AMD's GPUs, which multiply bfloat16"
    if (capabilities := _of_each_gpu("compute_cap")) is not None:
        lowest = min(capabilities)
        if lowest >= _BF16_GPU:
            return "bf16", f"its GPU multiplies bfloat16 (compute capability {lowest})"
        return "fp32", f"its GPU does not multiply bfloat16 (compute capability {lowest}; {_BF16_GPU} does)"
    if (fast := next((flag for flag in _BF16_CPU if flag in _cpu_flags()), None)) is not None:
        return "bf16", f"its CPU multiplies bfloat16 ({fast})"
    return "fp32", f"its CPU does not multiply bfloat16 (neither {' nor '.join(_BF16_CPU)}), which is slower there"


def cpu() -> str:
    """The CPU's name, as its maker gives it where the system tells."""
    names = [line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cpu_flags() -> set[str]:
    return {flag for line in _cpu_lines() if line.startswith("flags") for flag in line.partition(":")[2].split()}


def _cpu_lines() -> list[str]:
    return CPU.read_text(encoding="utf-8", errors="replace").splitlines() if CPU.exists() else []


def gpu_memory() -> int | None:
    """Bytes of memory of the smallest GPU by its driver; None when there is none or none is used."""
    sizes = _of_each_gpu("memory.total")
    return None if sizes is None else int(min(sizes)) * 2**20


def gpus() -> list[str]:
    """How CUDA_VISIBLE_DEVICES names each GPU that this process may use; none where there is none or none is used."""
    indexes = _of_each_gpu("index")
    if indexes is None:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(int(index)) for index in indexes]
    # As CUDA reads it: what follows an entry that names none is not used.
    return list(takewhile(lambda name: name not in {"", "-1"}, map(str.strip, visible.split(","))))


def is_for_amd() -> bool:
    """Whether torch is built for AMD's GPUs."""
    return _torch_is_for("rocm")


def cores() -> list[int]:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _of_each_gpu(column: str) -> list[float] | None:
    """What the driver says of each GPU; None when there is none, none is used, or the driver does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None or not _gpus_are_used():
        return None
    query = [program, f"--query-gpu={column}", "--format=csv,noheader,nounits"]
    result = subprocess.run(query, capture_output=True, text=True, check=False)
    try:
        values = [float(value) for value in result.stdout.split()]
    except ValueError:
        return None
    return values if result.returncode == 0 and values else None


def _gpus_are_used() -> bool:
    """Whether torch would use NVIDIA's, by its version alone."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in {"", "-1"}
    return not hidden and not _torch_is_for("cpu") and installed.version("torch") is not None


def _torch_is_for(device: str) -> bool:
    return f"+{device}" in (installed.version("torch") or "")
