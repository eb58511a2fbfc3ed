"""Messy files: each gives the right table, or is refused with what was wrong; in any order of its columns."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data.errors import BadInput
from data.importing import Imported, Request, import_data
from tests.builders import Row, write_jsonl
from tests.data import messy, messy_labels
from tests.data.messy import Messy

MESSY = messy.MESSY | messy_labels.MESSY_LABELS
TEXTS = ("prompt", "chosen", "rejected", "completion", "good")


def table(folder: Path, case: Messy, rows: list[Row]) -> tuple[Imported, list[tuple[Any, ...]]]:
    source = write_jsonl(folder / "messy.jsonl", rows)
    done = import_data(Request(str(source), case.kind, folder / "out.parquet", **{"turns": "single"} | case.settings))
    written = pq.read_table(folder / "out.parquet").to_pylist()
    return done, [tuple(row[column] for column in TEXTS if column in row) for row in written]


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("name", MESSY)
def test_a_messy_file_gives_its_table_or_is_refused(tmp_path: Path, name: str, backwards: bool) -> None:
    case = MESSY[name]
    rows = [dict(reversed(row.items())) if backwards else row for row in case.rows]
    if case.refused:
        with pytest.raises(BadInput, match=case.refused):
            table(tmp_path, case, rows)
        assert not (tmp_path / "out.parquet").exists()
        return
    done, written = table(tmp_path, case, rows)
    assert written == case.table
    assert done.dropped == case.dropped
    assert done.considered == len(written) + sum(done.dropped.values())


@pytest.mark.parametrize("name", [name for name, case in MESSY.items() if len(case.rows) > 1 and not case.refused])
def test_what_a_row_means_depends_on_no_other_row(tmp_path: Path, name: str) -> None:
    case = MESSY[name]
    alone: list[tuple[Any, ...]] = []
    for row in case.rows:
        try:
            alone += table(tmp_path, case, [row])[1]
        except BadInput as refused:
            assert "no row of 1 can be kept" in str(refused)  # dropped, as among the others
    assert alone == case.table
