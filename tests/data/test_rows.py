"""The types of rows and the Arrow schemas say the same."""

from pathlib import Path
from types import NoneType
from typing import Any, NotRequired, get_args, get_origin, get_type_hints

import pyarrow as pa
import pytest

from data import readers, rows
from data.rows import ROWS
from data.schemas import SCHEMAS

_PYTHON_TYPES: dict[Any, Any] = {
    pa.string(): str,
    pa.int32(): int,
    pa.int64(): int,
    pa.float64(): float,
    pa.bool_(): bool,
}


def type_of(field: pa.Field) -> Any:
    """The Python type of a column's values."""
    if pa.types.is_list(field.type):
        plain: Any = list[type_of(field.type.value_field)]  # type: ignore[misc]
    elif pa.types.is_struct(field.type):
        assert columns_of(rows.Message) == {inner.name: type_of(inner) for inner in field.type}
        plain = rows.Message
    else:
        plain = _PYTHON_TYPES[field.type]
    return plain | None if field.nullable else plain


def columns_of(kind: type) -> dict[str, Any]:
    """The columns that a row type names, with the types of their values."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: get_args(hint)[0] if get_origin(hint) is NotRequired else hint for name, hint in hints.items()}


def test_every_table_has_a_row_type_and_every_row_type_a_table() -> None:
    assert list(ROWS) == list(SCHEMAS)
    assert len(set(ROWS.values())) == len(ROWS)


@pytest.mark.parametrize("table", SCHEMAS)
def test_a_row_type_has_the_columns_types_and_nulls_of_its_schema(table: str) -> None:
    assert columns_of(ROWS[table]) == {field.name: type_of(field) for field in SCHEMAS[table]}


def test_the_pairs_that_a_round_trains_on_may_be_rows_of_either_table() -> None:
    training = columns_of(rows.TrainingPairRow)
    for kind in (rows.PairRow, rows.ReplayRow):
        for name, hint in columns_of(kind).items():
            assert hint == training[name] or hint | None == training[name]


def values_fit(kind: type, row: Any) -> bool:
    """Whether a row has the names and the types of values that its type says."""
    columns = columns_of(kind)
    allowed = {name: get_args(hint) or (hint,) for name, hint in columns.items()}
    return row.keys() == columns.keys() and all(type(row[name]) in allowed[name] for name in columns)


def test_the_readers_return_what_the_types_of_users_rows_say(tmp_path: Path) -> None:
    preferences, feedback = tmp_path / "preferences.jsonl", tmp_path / "feedback.jsonl"
    preference = '{"prompt": "a", "chosen": "b", "rejected": "c"'
    preferences.write_text(f'{preference}}}\n{preference}, "margin": 1}}\n')
    feedback.write_text('{"prompt": "a", "completion": "b", "good": true}\n')
    first, second = readers.read_preferences(preferences)
    assert values_fit(rows.UserPreference, first) and values_fit(rows.UserPreference, second)
    assert (type(first["margin"]), type(second["margin"])) == (NoneType, float)
    assert all(values_fit(rows.UserFeedback, row) for row in readers.read_feedback(feedback))
