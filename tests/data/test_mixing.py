"""Mixtures: their shares, their order, and where every row of every source went."""

import random
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import mixing
from data.errors import BadInput
from data.importing import DUPLICATE, Request
from data.mixing import SHARES, Part, interleaved, mix, quotas
from tests.builders import Row, write_jsonl

COUNTS = st.lists(st.integers(1, 60), min_size=1, max_size=5)
WEIGHTS = st.floats(0.01, 100).map(lambda weight: round(weight, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For tests that overwrite their files in each example."""
    return tmp_path_factory.mktemp("mixtures")


def part(folder: Path, name: str, texts: list[str], weight: float | None = None) -> Part:
    rows: list[Row] = [{"prompt": text, "id": str(i)} for i, text in enumerate(texts)]
    return Part(Request(str(write_jsonl(folder / f"{name}.jsonl", rows)), "prompts"), weight)


@given(parts=st.lists(st.tuples(st.integers(0, 1000), WEIGHTS), min_size=1, max_size=5))
def test_a_mixture_takes_as_many_rows_as_there_are_for_its_shares(parts: list[tuple[int, float]]) -> None:
    available, weights = zip(*parts, strict=True)
    counts = quotas(available, weights)
    assert all(0 <= count <= there for count, there in zip(counts, available, strict=True))
    # One part is used up, so no larger mixture has the same shares.
    assert any(count == there for count, there in zip(counts, available, strict=True))
    size = min(there / Fraction(str(weight)) for there, weight in parts)
    for count, weight in zip(counts, weights, strict=True):
        assert 0 <= Fraction(str(weight)) * size - count < 1
    doubled = quotas(available, [2 * weight for weight in weights])
    assert doubled == counts  # weights are relative


@given(available=COUNTS)
def test_without_weights_all_rows_are_taken(available: list[int]) -> None:
    assert quotas(available, [None] * len(available)) == available


@given(counts=COUNTS)
def test_any_beginning_of_a_mixture_has_its_shares(counts: list[int]) -> None:
    order, total = interleaved(counts), sum(counts)
    assert Counter(order) == dict(enumerate(counts))
    so_far = [0] * len(counts)
    for length, index in enumerate(order, start=1):
        so_far[index] += 1
        for count, there in zip(counts, so_far, strict=True):
            assert abs(there - length * count / total) < max(1, len(counts))


@given(
    texts=st.lists(st.lists(st.sampled_from("abcdefghijklmnop"), min_size=1, max_size=20), min_size=2, max_size=3),
    weights=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    weighted=st.booleans(),
    seed=st.integers(0, 99),
    shuffle=st.randoms(use_true_random=False),
)
def test_every_row_is_in_the_mixture_or_counted_whatever_the_order_in_the_files(
    folder: Path,
    texts: list[list[str]],
    weights: list[int],
    weighted: bool,
    seed: int,
    shuffle: random.Random,
) -> None:
    texts = [[f"{one}{i}" if i else one for one in column] for i, column in enumerate(texts)]
    texts[1] += texts[0][:1]  # in both
    parts = [part(folder, str(i), column, weights[i] if weighted else None) for i, column in enumerate(texts)]
    try:
        rows, outcomes = mix(parts, seed)
    except BadInput as refused:
        assert weighted and "too small beside the others" in str(refused)
        return
    for outcome, column in zip(outcomes, texts, strict=True):
        assert outcome.rows_in == outcome.considered == len(column)
        assert outcome.kept + sum(outcome.dropped.values()) == len(column)
    assert sum(outcome.kept for outcome in outcomes) == len(rows) == len({row["prompt"] for row in rows})
    assert outcomes[1].dropped[DUPLICATE] >= 1
    shuffled = [shuffle.sample(column, len(column)) for column in texts]
    again = [
        part(folder, f"{i}-again", column, one.weight)
        for i, (column, one) in enumerate(zip(shuffled, parts, strict=True))
    ]
    assert [row["prompt"] for row in mix(again, seed)[0]] == [row["prompt"] for row in rows]


def test_weights_are_shares_and_what_is_too_much_is_counted(tmp_path: Path) -> None:
    few = part(tmp_path, "few", [f"few {i}" for i in range(10)], 1)
    many = part(tmp_path, "many", [f"many {i}" for i in range(100)], 3)
    rows, (of_few, of_many) = mix([few, many], seed=0)
    assert (of_few.kept, of_many.kept) == (10, 30)
    assert of_few.dropped == {}
    assert of_many.dropped == {SHARES: 70}
    assert sum(row["prompt"].startswith("few") for row in rows[:8]) == 2
    other, _ = mix([few, many], seed=1)
    assert {row["prompt"] for row in other} != {row["prompt"] for row in rows}


def test_a_source_whose_weight_leaves_none_of_it_is_refused(tmp_path: Path) -> None:
    parts = [part(tmp_path, "a", ["a"], 1000), part(tmp_path, "b", ["b", "c"], 1)]
    with pytest.raises(BadInput, match=r"b\.jsonl: the mixture would have none of its 2 rows.*weight of 1 is too"):
        mix(parts, 0)


def test_a_source_that_brings_nothing_new_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"b\.jsonl: no row of 1 can be kept \(exact duplicate: 1\)"):
        mix([part(tmp_path, "a", ["a", "b"]), part(tmp_path, "b", ["b"])], 0)


def test_a_source_alone_keeps_its_order(tmp_path: Path) -> None:
    rows, outcome = mixing.read(part(tmp_path, "a", ["c", "a", "b", "a"]).request)
    assert [row["prompt"] for row in rows] == ["c", "a", "b"]
    assert outcome.dropped == {DUPLICATE: 1}
