"""What many tests share."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.points import Points

# Tests ask no hub for anything; read once, when the hub's client is first imported.
os.environ["HF_HUB_OFFLINE"] = "1"

# A busy machine is no fault of the code under test.
settings.register_profile("default", deadline=None, print_blob=True)
settings.load_profile("default")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny trained Llama as a Hugging Face folder; do not write into it."""
    from tests import tiny_model

    return tiny_model.make(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tokenizer(tiny: Path) -> Any:
    """The tiny model's tokenizer."""
    from pco.models.rendering import load_tokenizer

    return load_tokenizer(tiny)


@pytest.fixture(scope="session")
def one_thread() -> Any:
    """Stage processes with one thread each: more only fight over the few cores that tests have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture
def points(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Points:
    """Points at which processes wait or die that this test starts."""
    planned = Points(tmp_path_factory.mktemp("points"))
    for name, value in planned.environment.items():
        monkeypatch.setenv(name, value)
    return planned
