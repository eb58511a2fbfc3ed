"""Checks of files: what a valid one holds, and which row of another cannot be right."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.checking import check_file, refuse_leakage
from data.errors import BadInput
from data.importing import Request, import_data
from tests.builders import Row, write_jsonl

PAIR = {"prompt": "a", "chosen": "good one", "rejected": "bad"}
THUMB = {"prompt": "a", "completion": "b", "good": True}


def test_an_imported_file_is_valid_on_both_sides_of_its_split(tmp_path: Path) -> None:
    source = write_jsonl(
        tmp_path / "a.jsonl", [PAIR | {"prompt": f"Prompt  {i % 40}", "rejected": f"{i}"} for i in range(99)]
    )
    out, held = tmp_path / "out.parquet", tmp_path / "held.parquet"
    done = import_data(Request(str(source), "preferences", out, heldout_share=0.3, heldout_out=held))
    checked = [check_file(path) for path in (out, held)]
    assert [one.content.rows for one in checked] == [written.rows for written in done.outputs]
    assert [one.kind for one in checked] == ["preferences"] * 2
    refuse_leakage(*checked)


def test_files_written_by_hand_may_have_columns_of_their_own(tmp_path: Path) -> None:
    rows = [PAIR | {"note": 1}, PAIR, PAIR | {"prompt": "A "}]
    checked = check_file(write_jsonl(tmp_path / "a.jsonl", rows))
    assert (checked.kind, checked.content.rows, checked.duplicates) == ("preferences", 3, 1)
    assert (len(checked.content.prompts), checked.content.longer_chosen) == (1, 3)
    assert check_file(write_jsonl(tmp_path / "b.jsonl", [THUMB])).kind == "feedback"
    assert check_file(write_jsonl(tmp_path / "c.jsonl", [{"prompt": "a"}])).kind == "prompts"
    assert check_file(write_jsonl(tmp_path / "d.jsonl", [{"text": "a"}])).kind == "prompts"


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (PAIR | {"chosen": ""}, "row 2: expected a non-empty text under `chosen`; found ''"),
        (PAIR | {"rejected": None}, "row 2: expected a non-empty text under `rejected`; found None"),
        (PAIR | {"prompt": " "}, "row 2: expected a non-empty text under `prompt`"),
        (PAIR | {"chosen": "bad"}, "row 2: chosen equals rejected"),
        (PAIR | {"margin": float("inf")}, "row 2: expected a finite number or nothing under `margin`; found inf"),
        (PAIR | {"margin": float("nan")}, "row 2: expected a finite number or nothing under `margin`; found nan"),
        (PAIR | {"prompt_id": "0123456789abcdef"}, "row 2: `prompt_id` is '0123456789abcdef', but its prompt's is"),
    ],
)
def test_a_row_that_cannot_be_right_is_named(tmp_path: Path, row: Row, told: str) -> None:
    pq.write_table(pa.Table.from_pylist([PAIR | {"prompt_id": None, "margin": None}, row]), tmp_path / "a.parquet")
    with pytest.raises(BadInput, match=told):
        check_file(tmp_path / "a.parquet")


@pytest.mark.parametrize("good", [None, 1, "yes", "y" * 99])
def test_feedback_that_is_neither_good_nor_bad_is_named(tmp_path: Path, good: object) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [THUMB, THUMB | {"good": good}])
    with pytest.raises(BadInput, match="line 2: expected true or false under `good`"):
        check_file(path)


@pytest.mark.parametrize(
    ("rows", "told"), [([], "holds no rows"), ([{"question": "a"}], "columns question. Expected prompt;")]
)
def test_a_file_of_no_known_kind_is_refused(tmp_path: Path, rows: list[Row], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        check_file(write_jsonl(tmp_path / "a.jsonl", rows))


def test_prompts_in_both_files_are_found_whatever_their_case_and_whitespace(tmp_path: Path) -> None:
    train = check_file(write_jsonl(tmp_path / "train.jsonl", [PAIR, PAIR | {"prompt": "Why is\nit so?"}]))
    held = check_file(write_jsonl(tmp_path / "held.jsonl", [{"prompt": "other"}, {"prompt": "why is it SO?"}]))
    with pytest.raises(BadInput, match=r"1 prompts? .* both .*, first in line 2 of the one and line 2 of the other"):
        refuse_leakage(train, held)


def test_right_answers_are_counted_and_nan_is_none(tmp_path: Path) -> None:
    answers = ["4", 4, float("nan"), None]
    rows = [{"prompt": str(i), "reference": reference} for i, reference in enumerate(answers)]
    checked = check_file(write_jsonl(tmp_path / "a.jsonl", rows))
    assert (checked.references, checked.not_numbers) == (2, 1)


def test_an_answer_that_is_a_conversation_written_as_text_is_named(tmp_path: Path) -> None:
    row = PAIR | {"chosen": '[{"role": "assistant", "content": "good one"}]'}
    with pytest.raises(BadInput, match="line 1: `chosen` is a conversation written as text"):
        check_file(write_jsonl(tmp_path / "a.jsonl", [row]))
