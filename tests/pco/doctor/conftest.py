"""A sound config, and a model that a test may spoil."""

import shutil
from pathlib import Path

import pytest

from pco.config.run import RunConfig
from tests import builders


@pytest.fixture
def config(tmp_path: Path, tiny: Path) -> RunConfig:
    """A config with nothing to complain of."""
    builders.write_prompts(tmp_path, [f"the river {i}" for i in range(8)], [f"a grey heron {i}" for i in range(30)])
    return builders.config(tmp_path, tiny, generate__max_tokens=16)


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may spoil."""
    return shutil.copytree(tiny, tmp_path / "model")
