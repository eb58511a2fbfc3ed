"""What many tests share, and which of them are fast.

A test is marked `process` if it starts processes, and `engine` if it loads models; `make fast` leaves out both. What
a test's fixtures do marks it here, other tests carry the mark themselves. One that starts a process without it fails.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import settings

from tests.points import Points

# A shell lets what it starts in the background ignore Ctrl-C, and children inherit that: here it means what it means.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What is printed depends on a terminal's width, which reaches some of the processes that run tests, others not.
os.environ["COLUMNS"] = "200"

# Tests ask no hub for anything; read once, when the hub's client is first imported.
os.environ["HF_HUB_OFFLINE"] = "1"

# A busy machine is no fault of the code under test.
settings.register_profile("default", deadline=None, print_blob=True)
settings.register_profile("fast", settings.get_profile("default"), max_examples=10)  # make fast
settings.load_profile("default")


MARK_OF_FIXTURE = {"stage_does": "process", "points": "process", "server": "process", "tiny": "engine"}
LONG = ("e2e", "chaos", "ui", "compose", "tasks", "trackers", "cluster")


@pytest.hookimpl(tryfirst=True)  # before some are deselected by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for fixture in MARK_OF_FIXTURE.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker(MARK_OF_FIXTURE[fixture])
        if any(item.get_closest_marker(name) for name in LONG):
            item.add_marker("process")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    if item.get_closest_marker("process") or item.get_closest_marker("engine"):
        return (yield)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", _refuse_to_start)
        return (yield)


def _refuse_to_start(*_: Any, **__: Any) -> NoReturn:
    pytest.fail("starts a process: mark this test `process`, or what it uses in tests/conftest.py")


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
