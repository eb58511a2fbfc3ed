"""Messy files: each gives the right table, or is refused with what was wrong; in any order of its columns."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data.errors import BadInput
from data.importing import Imported, Request, import_data
from tests.builders import Row, write_jsonl
from tests.data.messy import MESSY, Messy

TEXTS = ("prompt", "chosen", "rejected", "completion", "good")


def table(folder: Path, messy: Messy, rows: list[Row]) -> tuple[Imported, list[tuple[Any, ...]]]:
    source = write_jsonl(folder / "messy.jsonl", rows)
    done = import_data(Request(str(source), messy.kind, folder / "out.parquet", **messy.settings))
    written = pq.read_table(folder / "out.parquet").to_pylist()
    return done, [tuple(row[column] for column in TEXTS if column in row) for row in written]


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("name", MESSY)
def test_a_messy_file_gives_its_table_or_is_refused(tmp_path: Path, name: str, backwards: bool) -> None:
    messy = MESSY[name]
    rows = [dict(reversed(row.items())) if backwards else row for row in messy.rows]
    if messy.refused:
        with pytest.raises(BadInput, match=messy.refused):
            table(tmp_path, messy, rows)
        assert not (tmp_path / "out.parquet").exists()
        return
    done, written = table(tmp_path, messy, rows)
    assert written == messy.table
    assert done.dropped == messy.dropped
    assert done.considered == len(written) + sum(done.dropped.values())


@pytest.mark.parametrize("name", [name for name, messy in MESSY.items() if len(messy.rows) > 1 and not messy.refused])
def test_what_a_row_means_depends_on_no_other_row(tmp_path: Path, name: str) -> None:
    messy = MESSY[name]
    alone: list[tuple[Any, ...]] = []
    for row in messy.rows:
        try:
            alone += table(tmp_path, messy, [row])[1]
        except BadInput as refused:
            assert "no row of 1 can be kept" in str(refused)  # dropped, as among the others
    assert alone == messy.table
