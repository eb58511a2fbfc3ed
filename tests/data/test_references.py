"""Right answers: kept by an import as the source gives them, and counted where there are none."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import card
from data.errors import BadInput
from data.importing import ANOTHER_REFERENCE, DUPLICATE, Imported, Request, import_data
from data.readers import read_jsonl
from tests.builders import Row, write_jsonl


def imported(folder: Path, rows: list[Row], **settings: Any) -> tuple[Imported, list[str | None]]:
    source = write_jsonl(folder / "source.jsonl", rows)
    done = import_data(Request(str(source), "prompts", folder / "out.parquet", **settings))
    return done, [row["reference"] for row in read_jsonl(folder / "out.parquet", key="prompt")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For a test that overwrites its files in each example."""
    return tmp_path_factory.mktemp("references")


@given(
    answers=st.lists(
        st.one_of(
            st.none(),
            st.just(float("nan")),
            st.integers(),
            st.floats(allow_nan=False, allow_infinity=False),
            st.text(st.characters(codec="utf-8"), max_size=9),
        ),
        min_size=1,
        max_size=9,
    )
)
def test_every_right_answer_is_kept_as_it_is_or_counted_as_none(folder: Path, answers: list[Any]) -> None:
    done, references = imported(folder, [{"prompt": str(i), "reference": one} for i, one in enumerate(answers)])
    none = [one is None or one != one or not str(one).strip() for one in answers]  # noqa: PLR0124  NaN is not itself
    assert references == [None if empty else str(one) for one, empty in zip(answers, none, strict=True)]
    counts = done.notes.references
    assert counts["given"] == none.count(False)
    assert counts["NaN"] + counts["empty"] == none.count(True)


def test_references_that_are_none_are_told_and_stand_in_the_card(tmp_path: Path) -> None:
    table = pa.table({"question": ["a", "b", "c", "d"], "answer": [4.0, float("nan"), None, 0.5]})
    pq.write_table(table, tmp_path / "in.parquet")
    names = {"answer": "reference"}
    done = import_data(Request(str(tmp_path / "in.parquet"), "prompts", tmp_path / "out.parquet", names=names))
    assert card.told_references(done.notes) == "2 of 4 rows; none where NaN: 1, empty: 1"
    assert "References: 2 of 4 rows; none where NaN: 1, empty: 1" in card.told_notes(done)
    assert "| references | 2 of 4 rows" in card.text(done, done.outputs[0])
    assert pq.read_table(tmp_path / "out.parquet").column("reference").to_pylist() == ["4.0", None, None, "0.5"]


def test_a_prompt_that_comes_again_with_another_right_answer_is_counted_apart(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "reference": answer} for answer in ("1", "1", "2", None)]
    done, references = imported(tmp_path, rows)
    assert references == ["1"]
    assert done.dropped == {DUPLICATE: 1, ANOTHER_REFERENCE: 2}


@pytest.mark.parametrize("value", [True, [1], {"a": 1}, float("inf")])
def test_a_right_answer_of_another_type_is_dropped_by_what_stood_there(tmp_path: Path, value: object) -> None:
    with pytest.raises(BadInput, match="malformed: `reference` is .*, not a text or a finite number: 1"):
        imported(tmp_path, [{"prompt": "a", "reference": value}])


def test_a_source_without_right_answers_says_nothing_of_them(tmp_path: Path) -> None:
    done, references = imported(tmp_path, [{"prompt": "a"}])
    assert references == [None]
    assert "eference" not in "".join(card.told_notes(done)) + card.text(done, done.outputs[0])
