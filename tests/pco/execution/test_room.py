"""How workers fit the machines of a cluster."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import BadInput
from pco.execution.room import Room, room
from tests import builders

NODES = st.lists(st.fixed_dictionaries({"CPU": st.integers(0, 9), "GPU": st.integers(0, 4)}), max_size=4)


def asked(nodes: list[dict[str, float]], workers: int, gpus: int | None = None, **settings: Any) -> Room:
    executor = {"kind": "ray", "workers": workers, "gpus_per_worker": gpus}
    return room(builders.config(Path("/nowhere"), executor=executor, **settings), nodes)


def fitting(nodes: list[dict[str, float]], cores: int, gpus: int) -> int:
    return sum(min(node["CPU"] // cores, node["GPU"] // gpus if gpus else 99) for node in nodes)


@given(nodes=NODES, workers=st.integers(1, 5), gpus=st.integers(0, 2))
def test_each_worker_has_as_many_cores_as_possible_and_all_fit_or_are_refused(
    nodes: list[dict[str, float]], workers: int, gpus: int
) -> None:
    try:
        found = asked(nodes, workers, gpus)
    except BadInput:
        assert fitting(nodes, 1, gpus) < workers
        return
    assert found.gpus == gpus
    assert fitting(nodes, found.cores, gpus) >= workers > fitting(nodes, found.cores + 1, gpus)


def test_by_default_a_worker_has_the_gpus_of_its_engine_where_there_are_any() -> None:
    box: dict[str, float] = {"CPU": 16, "GPU": 8}
    assert asked([box], 4) == Room(4, 1)
    assert asked([box, box], 4, engine__tensor_parallel=4) == Room(8, 4)
    assert asked([{"CPU": 16}], 4, engine__tensor_parallel=4) == Room(4, 0)


def test_the_refusal_says_what_there_is() -> None:
    with pytest.raises(BadInput, match=r"3 workers with 4 GPU\(s\).* 1 machine\(s\).* 8 GPU\(s\) and 16 core"):
        asked([{"CPU": 16, "GPU": 8}], 3, 4)
