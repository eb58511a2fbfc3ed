"""Windows of a file that grows: nothing twice, nothing left out, and what was used may not change."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import windows
from data.errors import BadInput
from data.windows import Mark

LINES = st.lists(st.sampled_from(["", "  "]) | st.integers().map(json.dumps), max_size=8)


@given(st.lists(st.tuples(LINES, st.booleans(), st.none() | st.integers(1, 5)), max_size=12))
def test_windows_of_a_growing_file_never_overlap_and_leave_nothing_out(
    tmp_path_factory: pytest.TempPathFactory, growth: list[tuple[list[str], bool, int | None]]
) -> None:
    path = tmp_path_factory.mktemp("grown") / "prompts.jsonl"
    path.write_bytes(b"")
    mark, taken = Mark(), b""
    for lines, is_torn, most in growth:
        text = "\n".join(lines) + ("" if is_torn else "\n")
        with path.open("ab") as file:
            file.write(text.encode())
        window = windows.after(path, mark, most=most)
        assert window == windows.after(path, mark, most=most), "a resume reads the same rows"
        assert window.begin == mark
        assert window.end.rows - mark.rows == window.rows == _rows(window.content)
        assert most is None or window.rows <= most
        taken, mark = taken + window.content, window.end
    with path.open("ab") as file:
        file.write(b"\n")
    while window_rows := (window := windows.after(path, mark, most=3)).rows:
        assert window_rows <= 3
        taken, mark = taken + window.content, window.end
    whole = path.read_bytes()
    assert whole.startswith(taken), "in the order of the file, each once"
    assert not whole[len(taken) :].strip(), "nothing is left out"
    assert mark.rows == _rows(whole)


def _rows(content: bytes) -> int:
    return sum(bool(line.strip()) for line in content.split(b"\n"))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.data())
def test_a_file_that_changed_before_the_mark_is_refused_and_after_it_may(
    tmp_path_factory: pytest.TempPathFactory, rows: list[int], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("changed") / "prompts.jsonl"
    path.write_text("".join(f"{row}\n" for row in rows))
    used = windows.after(path, Mark(), most=data.draw(st.integers(1, len(rows)))).end
    at = data.draw(st.integers(0, path.stat().st_size - 1))
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    if at < used.bytes:
        with pytest.raises(BadInput, match=r"prompts\.jsonl: changed within its first .* begin a new series"):
            windows.after(path, used)
    else:
        windows.after(path, used)


def test_a_file_that_shrank_is_refused_and_one_that_holds_nothing_new_gives_nothing(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("1\n2\n3\n")
    used = windows.after(path, Mark()).end
    assert windows.after(path, used).rows == 0
    path.write_text("1\n2\n")
    with pytest.raises(BadInput, match="shrank within its first 3 rows"):
        windows.after(path, used)


def test_a_row_that_is_still_being_written_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n{"prom')
    first = windows.after(path, Mark())
    assert first.content == b'{"prompt": "a"}\n'
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    assert windows.after(path, first.end).content == b'{"prompt": "b"}\n'


def test_what_is_no_file_of_lines_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"rows\.parquet: cannot be read in windows"):
        windows.after(tmp_path / "rows.parquet", Mark())
    with pytest.raises(BadInput, match=r"none\.jsonl: could not be read"):
        windows.after(tmp_path / "none.jsonl", Mark())
