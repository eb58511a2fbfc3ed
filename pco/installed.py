"""The Python environment that stages run in: this process's own, or that of the interpreter `PCO_STAGE_PYTHON`.

No module of `pco` imports Prefect and no flow imports torch, so the two may be installed apart: a newer Prefect than
the engines' pins allow, workers without torch, engines without Prefect.
"""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from data import files
from data.errors import BadInput

STAGE_PYTHON = "PCO_STAGE_PYTHON"
# With these both sides read and write the same files.
_SHARED = ("datasets", "jinja2", "numpy", "pyarrow", "pydantic", "safetensors", "tokenizers", "transformers")
_MODULES = ("vllm", "deepspeed", "lm_eval", "ray")
_ASK = "from pco import installed; installed.tell()"
_ASK_S = 120.0


@dataclass(frozen=True)
class Environment:
    """What is installed in an environment: Python's version, those of distributions by name, some of the modules.

    `code` is a digest of the package's own source, which lies in `folder`.
    """

    python: str
    versions: dict[str, str]
    modules: list[str]
    code: str
    folder: str


@cache
def of_this_process() -> Environment:
    """What this process can import."""
    root = Path(__file__).parents[1]
    sources = [path for package in ("pco", "data") for path in sorted((root / package).rglob("*.py"))]
    return Environment(
        python=sys.version.partition(" ")[0],
        # Of two on the path the first is imported, so it comes last here.
        versions={found.name.lower(): found.version for found in reversed([*metadata.distributions()]) if found.name},
        modules=[name for name in _MODULES if importlib.util.find_spec(name) is not None],
        code=files.digest({str(path.relative_to(root)): files.file_digest(path) for path in sources}),
        folder=str(root),
    )


def tell() -> None:
    """Print what this process can import, for a process of another environment."""
    print(json.dumps(asdict(of_this_process())))


def is_apart() -> bool:
    """Whether stages run in another environment than this process."""
    interpreter = os.environ.get(STAGE_PYTHON)
    return bool(interpreter) and interpreter != sys.executable


def python() -> str:
    """The interpreter that stages run under. Raises BadInput where `PCO_STAGE_PYTHON` names none."""
    if not is_apart():
        return sys.executable
    path = Path(os.environ[STAGE_PYTHON])
    if not path.is_absolute() or path.is_dir() or not os.access(path, os.X_OK):
        raise BadInput(
            f"{STAGE_PYTHON}: {path} is no program with an absolute path. Name the Python of the environment that "
            "stages are to run in, such as /srv/stages/bin/python, or unset it: then they run under this one."
        )
    return str(path)


def of_stages() -> Environment:
    """What stages can import. Raises BadInput where their Python does not answer, or has no pco."""
    return _asked(python()) if is_apart() else of_this_process()


@cache
def _asked(interpreter: str) -> Environment:
    command = [interpreter, "-P", "-c", _ASK]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_S, check=True)
        return Environment(**json.loads(done.stdout.splitlines()[-1]))
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip().splitlines() or [str(error)])[-1]
    except (OSError, subprocess.TimeoutExpired, ValueError, TypeError, IndexError) as error:
        said = str(error)
    raise BadInput(
        f"{STAGE_PYTHON}: {interpreter} could not say what is installed there ({said}). Install this version of pco in "
        "that environment, too, with the extra `cpu` or `gpu`."
    )


def has(module: str) -> bool:
    """Whether stages can import one of the modules that an `Environment` knows."""
    return module in of_stages().modules if is_apart() else importlib.util.find_spec(module) is not None


def version(distribution: str) -> str | None:
    """The version of a distribution where stages run; None if it is not there."""
    if is_apart():
        return of_stages().versions.get(distribution)
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def differences() -> list[str]:
    """The packages that both sides share, where their versions differ, in words."""
    here, there = of_this_process().versions, of_stages().versions
    return [
        f"{name} {here.get(name, 'missing')} here, {there.get(name, 'missing')} there"
        for name in _SHARED
        if here.get(name) != there.get(name)
    ]
