"""Tables hold to their schema, nulls included."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import schemas
from data.errors import CorruptArtifact
from data.schemas import SCHEMAS

COLUMNS = [(table, field.name) for table, schema in SCHEMAS.items() for field in schema]
_EXAMPLES: dict[Any, Any] = {
    pa.string(): "text",
    pa.int32(): 1,
    pa.int64(): 1,
    pa.float64(): 0.5,
    pa.bool_(): True,
}


def row(table: str) -> dict[str, Any]:
    full = {field.name: _EXAMPLES.get(field.type, [1, 2]) for field in SCHEMAS[table]}
    return full | {"messages": [{"role": "user", "content": "text"}]} if "messages" in full else full


@pytest.mark.parametrize("table", SCHEMAS)
def test_full_rows_of_every_table_are_accepted_and_come_back_unchanged(table: str) -> None:
    assert schemas.build(table, [row(table)] * 3).to_pylist() == [row(table)] * 3


@pytest.mark.parametrize("table", SCHEMAS)
def test_every_table_may_be_empty(table: str) -> None:
    assert schemas.build(table, []).num_rows == 0


@pytest.mark.parametrize(("table", "column"), COLUMNS)
def test_a_missing_value_is_accepted_exactly_where_the_schema_allows_one(table: str, column: str) -> None:
    rows = [row(table), {**row(table), column: None}]
    if SCHEMAS[table].field(column).nullable:
        assert schemas.build(table, rows).column(column).null_count == 1
    else:
        with pytest.raises(CorruptArtifact, match=rf"column `{column}` of `{table}` has 1 empty value\(s\)"):
            schemas.build(table, rows)


@given(other=st.sampled_from(sorted(SCHEMAS)), table=st.sampled_from(sorted(SCHEMAS)))
def test_a_table_passes_as_itself_and_as_no_other(table: str, other: str) -> None:
    content = schemas.build(table, [row(table)])
    if other == table:
        schemas.check(other, content, where="somewhere")
    else:
        with pytest.raises(CorruptArtifact, match=f"^somewhere: not a `{other}` table"):
            schemas.check(other, content, where="somewhere")


@pytest.mark.parametrize("change", ["missing", "extra", "renamed", "retyped", "reordered"])
def test_any_change_of_columns_is_refused_with_what_was_expected_and_found(change: str) -> None:
    content = schemas.build("scores", [row("scores")])
    names = content.column_names
    changed = {
        "missing": lambda: content.drop_columns(["reward"]),
        "extra": lambda: content.append_column("note", pa.array(["x"])),
        "renamed": lambda: content.rename_columns(["id", *names[1:]]),
        "retyped": lambda: content.set_column(2, "reward", content.column("reward").cast(pa.float32())),
        "reordered": lambda: content.select(names[::-1]),
    }[change]()
    with pytest.raises(CorruptArtifact, match="Expected columns prompt_id: string, .*; found "):
        schemas.check("scores", changed, where="here")


def test_a_value_of_another_type_is_refused() -> None:
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        schemas.build("scores", [{**row("scores"), "reward": "much"}])


def test_nulls_inside_token_lists_are_refused() -> None:
    with pytest.raises(CorruptArtifact, match="token_ids"):
        schemas.build("candidates", [{**row("candidates"), "token_ids": [1, None]}])


def test_nulls_inside_a_list_that_may_be_missing_are_refused() -> None:
    with pytest.raises(CorruptArtifact, match=r"column `members` of `scores` has 1 empty value"):
        schemas.build("scores", [{**row("scores"), "members": [1.0, None]}])
