"""The run on disk: parts and manifests appear whole or not at all, and reads notice all that is not as written."""

import contextlib
import json
import os
import re
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import files, schemas, store
from data.errors import BadInput, CorruptArtifact, PCOError
from tests.builders import score_row
from tests.processes import as_nobody, killed_after

PRINT = "aaaabbbbccccdddd"
ACCOUNT: dict[str, Any] = {
    "stage": "score",
    "fingerprint": PRINT,
    "unit": "candidates",
    "rows_in": 6,
    "rows_out": 5,
    "dropped": {"not finite": 1},
    "inputs": {"candidates": "x"},
    "settings": {"reward": {"kind": "repetition"}},
    "started": 1.0,
}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def scores(rows: int, prompt: str = "p") -> pa.Table:
    return schemas.build("scores", [score_row(prompt, sample, -sample / 8) for sample in range(rows)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "round-01" / "scores"


@pytest.fixture
def stage(folder: Path) -> Path:
    """A finished stage of two shards."""
    return finished_in(folder)


def finished_in(folder: Path) -> Path:
    store.write_part(folder, "scores", 0, scores(3, "first"), PRINT)
    store.write_part(folder, "scores", 1, scores(2, "second"), PRINT)
    store.finish(folder, **ACCOUNT)
    return folder


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


# Fingerprints.


@given(value=st.dictionaries(st.text(), json_values))
def test_a_digest_does_not_depend_on_the_order_of_keys(value: dict[str, Any]) -> None:
    assert files.digest(dict(reversed(value.items()))) == files.digest(value)


@given(a=json_values, b=json_values)
def test_different_values_have_different_digests(a: Any, b: Any) -> None:
    assert (files.digest(a) == files.digest(b)) == (json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True))


def test_a_digest_of_what_json_cannot_say_is_refused() -> None:
    with pytest.raises(TypeError):
        files.digest({"path": Path("x")})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_bytes(b'{"hidden_size": 64}')
    (tmp_path / "model" / "model.safetensors").write_bytes(bytes(range(64)))
    return tmp_path / "model"


def test_a_folders_digest_changes_with_every_single_byte(model: Path) -> None:
    weights = model / "model.safetensors"
    original, first = weights.read_bytes(), files.folder_digest(model)
    found = {first}
    for position in range(len(original)):
        weights.write_bytes(original[:position] + bytes([original[position] ^ 1]) + original[position + 1 :])
        found.add(files.folder_digest(model))
    assert len(found) == len(original) + 1
    weights.write_bytes(original)
    assert files.folder_digest(model) == first


def test_a_folders_digest_changes_with_names_and_with_files_that_come_and_go(model: Path) -> None:
    found = [files.folder_digest(model)]
    (model / "config.json").rename(model / "config2.json")
    found.append(files.folder_digest(model))
    (model / "extra.txt").touch()
    found.append(files.folder_digest(model))
    (model / "config2.json").unlink()
    found.append(files.folder_digest(model))
    assert len(set(found)) == 4


def test_a_folders_digest_does_not_depend_on_where_it_lies_or_when_it_was_made(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    assert files.folder_digest(tmp_path / "elsewhere") == files.folder_digest(model)


# Writing and reading.


@settings(max_examples=20)  # each waits for the disk
@given(sizes=st.lists(st.integers(0, 4), min_size=1, max_size=12), data=st.data())
def test_a_table_is_its_shards_in_order_however_they_were_written(sizes: list[int], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        shards = [scores(size, f"prompt {i}") for i, size in enumerate(sizes)]
        for i in data.draw(st.permutations(range(len(sizes)))):
            store.write_part(Path(name), "scores", i, shards[i], PRINT)
        store.finish(Path(name), **{**ACCOUNT, "rows_in": sum(sizes), "rows_out": sum(sizes), "dropped": {}})
        assert store.read_table(Path(name), "scores").equals(pa.concat_tables(shards))


def test_a_manifest_records_every_part_and_reads_back_equal(folder: Path) -> None:
    store.write_part(folder, "scores", 0, scores(3), PRINT)
    written = store.finish(folder, **ACCOUNT, outputs={"policy": "abc"}, metrics={"tokens": 3.0})
    assert store.read_manifest(folder) == written
    assert [(part.table, part.file, part.rows) for part in written.parts] == [("scores", "scores-00000.parquet", 3)]
    assert written.parts[0].sha256 == files.file_digest(folder / "scores-00000.parquet")
    assert written.rows_in == written.rows_out + sum(written.dropped.values())
    assert written.seconds > 0
    assert written.versions["pyarrow"] == pa.__version__


@settings(max_examples=50)
@given(rows_in=st.integers(0, 9), rows_out=st.integers(0, 9), dropped=st.lists(st.integers(0, 9), max_size=3))
def test_a_stage_finishes_only_if_every_row_is_accounted_for(rows_in: int, rows_out: int, dropped: list[int]) -> None:
    with tempfile.TemporaryDirectory() as name:
        counts = {f"reason {i}": count for i, count in enumerate(dropped)}
        account = {**ACCOUNT, "rows_in": rows_in, "rows_out": rows_out, "dropped": counts}
        if rows_in == rows_out + sum(dropped):
            store.finish(Path(name), **account)
            return
        with pytest.raises(PCOError, match=f"{rows_in} candidates in, {rows_out} out, .* unaccounted for"):
            store.finish(Path(name), **account)
        assert store.read_manifest(Path(name)) is None


def test_a_table_of_another_shape_is_never_written(folder: Path) -> None:
    with pytest.raises(CorruptArtifact, match="scores shard 0: not a `candidates` table"):
        store.write_part(folder, "candidates", 0, scores(1), PRINT)
    assert not folder.exists()


def test_a_stage_knows_its_own_parts_by_their_fingerprint(folder: Path) -> None:
    assert not store.has_part(folder, "scores", 0, PRINT)
    store.write_part(folder, "scores", 0, scores(1), PRINT)
    assert store.has_part(folder, "scores", 0, PRINT)
    assert not store.has_part(folder, "scores", 0, "another")
    assert not store.has_part(folder, "scores", 1, PRINT)


def test_parts_of_an_attempt_with_other_settings_never_mix_with_a_stages_own(folder: Path) -> None:
    for shard in range(3):
        store.write_part(folder, "scores", shard, scores(1, "of before"), "another")
    store.write_part(folder, "scores", 0, scores(2), PRINT)
    assert store.read_parts(folder, "scores", PRINT).equals(scores(2))
    store.finish(folder, **{**ACCOUNT, "rows_in": 2, "rows_out": 2, "dropped": {}})
    assert store.read_table(folder, "scores").equals(scores(2))


# Writers that are killed or fail.


def test_a_writer_killed_at_any_point_leaves_whole_parts_and_the_manifest_last(tmp_path: Path) -> None:
    names = ["manifest.json", "scores-00000.parquet", "scores-00001.parquet"]
    for calls in range(100):
        folder = tmp_path / str(calls)
        killed = killed_after(calls, lambda folder=folder: finished_in(folder))
        visible = sorted(path.name for path in folder.glob("[!.]*"))
        assert visible in ([], names[1:2], names[1:], names)
        parts = [scores(3, "first"), scores(2, "second")][: len(visible)]
        assert store.read_parts(folder, "scores", PRINT).equals(pa.concat_tables([scores(0), *parts]))
        # The next attempt ends as if nothing had happened.
        assert store.read_table(finished_in(folder), "scores").num_rows == 5
        if not killed:
            break
    assert 9 <= calls < 99


def test_a_folder_whose_replacement_is_killed_at_any_point_is_whole_or_absent(tmp_path: Path) -> None:
    for calls in range(100):
        folder = tmp_path / str(calls) / "policy"
        replace_folder(folder, {"a": "old", "b": "old", "c": "old"})
        killed = killed_after(calls, lambda folder=folder: replace_folder(folder, {"a": "new", "b": "new"}))
        assert texts(folder) in ({"a": "old", "b": "old", "c": "old"}, {"a": "new", "b": "new"}, {})
        replace_folder(folder, {"a": "newest"})
        assert texts(folder) == {"a": "newest"}
        assert [path.name for path in folder.parent.iterdir()] == ["policy"]
        if not killed:
            break
    assert 6 <= calls < 99


def replace_folder(folder: Path, content: dict[str, str]) -> None:
    with files.atomic_folder(folder) as temporary:
        for name, text in content.items():
            (temporary / name).write_text(text)


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()} if folder.exists() else {}


def test_a_file_is_on_the_disk_before_it_takes_its_name_and_the_name_before_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(handle: int) -> None:
        calls.append(f"sync {Path(f'/proc/self/fd/{handle}').resolve().name}")
        fsync(handle)

    def recorded_replace(source: Path, target: Path) -> None:
        calls.append(f"{Path(source).name} becomes {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    files.write_text(tmp_path / "file", "text")
    temporary = calls[0].removeprefix("sync ")
    assert re.fullmatch(r"\.file\.[0-9a-f]{32}\.tmp", temporary)
    assert calls == [f"sync {temporary}", f"{temporary} becomes file", f"sync {tmp_path.name}"]


def test_a_block_that_fails_leaves_the_old_file_and_folder_and_no_other(tmp_path: Path) -> None:
    files.write_text(tmp_path / "file", "old")
    with files.atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "a").write_text("old")
    with pytest.raises(KeyError), files.atomic_path(tmp_path / "file") as path:
        path.write_text("new")
        raise KeyError
    with pytest.raises(KeyError), files.atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "a").write_text("new")
        raise KeyError
    assert (tmp_path / "file").read_text() == "old"
    assert texts(tmp_path / "folder") == {"a": "old"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@contextlib.contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """As on a full disk: no file of this process can grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_nothing(folder: Path) -> None:
    folder.mkdir(parents=True)
    with pytest.raises(PCOError, match=r"scores-00000\.parquet: could not be written .* resume the run"):  # noqa: SIM117
        with files_limited_to(100):
            store.write_part(folder, "scores", 0, scores(3), PRINT)
    assert list(folder.iterdir()) == []


def test_writing_without_permission_is_refused_with_what_to_do(open_folder: Path) -> None:
    (open_folder / "closed").mkdir(mode=0o555)

    def write() -> None:
        for target in ("part", "new/part"):
            with pytest.raises(BadInput, match="no permission to write here.*runs_dir"):
                files.write_text(open_folder / "closed" / target, "text")
        with pytest.raises(BadInput, match="no permission"), files.atomic_folder(open_folder / "closed" / "policy"):
            pass

    as_nobody(write)


def test_a_path_that_leads_through_a_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PCOError, match="part: could not be written"):
        files.write_text(tmp_path / "file" / "part", "text")


# Finished stages.


def test_an_unfinished_stage_has_no_manifest_and_its_table_cannot_be_read(folder: Path) -> None:
    assert store.read_manifest(folder) is None
    store.write_part(folder, "scores", 0, scores(3), PRINT)
    assert store.read_manifest(folder) is None
    with pytest.raises(CorruptArtifact, match=r"has no manifest\.json, so its stage is not finished"):
        store.read_table(folder, "scores")


def test_a_manifest_of_a_newer_version_is_refused_rather_than_misread(stage: Path) -> None:
    edit_manifest(stage, format=2, parts="in another form")
    with pytest.raises(CorruptArtifact, match=r"manifest\.json: written by a newer version"):
        store.read_manifest(stage)


def edit_manifest(stage: Path, **changes: Any) -> None:
    path = stage / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


MANGLED = ["", "{", "[]", "3", "null", "{}", '{"parts": 3}', '{"parts": [{}]}', '{"format": "x"}', "\x00"]


@pytest.mark.parametrize("content", MANGLED)
def test_a_manifest_that_is_none_is_refused_by_name(stage: Path, content: str) -> None:
    (stage / "manifest.json").write_text(content)
    for read in (lambda: store.read_manifest(stage), lambda: store.read_table(stage, "scores")):
        with pytest.raises(CorruptArtifact, match=r"manifest\.json"):
            read()


def test_a_manifest_cut_anywhere_is_refused(stage: Path) -> None:
    path = stage / "manifest.json"
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CorruptArtifact, match=r"manifest\.json"):
            store.read_manifest(stage)


# Damage.


def test_a_missing_part_is_named(stage: Path) -> None:
    (stage / "scores-00001.parquet").unlink()
    with pytest.raises(CorruptArtifact, match=r"scores-00001\.parquet: missing, .* lists it \(2 rows\)"):
        store.read_table(stage, "scores")


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b + b"\0", lambda b: b[:99] + b[98:]])
def test_a_part_of_another_length_is_named(stage: Path, damage: Any) -> None:
    path = stage / "scores-00001.parquet"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CorruptArtifact, match=r"scores-00001\.parquet: its content is not what its manifest recorded"):
        store.read_table(stage, "scores")


def test_a_part_altered_in_any_byte_is_named(stage: Path) -> None:
    path = stage / "scores-00000.parquet"
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(flipped(content, position))
        with pytest.raises(CorruptArtifact, match=r"scores-00000\.parquet: .*checksum differs"):
            store.read_table(stage, "scores")


def flipped(content: bytes, position: int) -> bytes:
    """The content with one bit changed."""
    return content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :]


def test_a_foreign_part_is_not_read_even_if_it_is_sound(stage: Path, tmp_path: Path) -> None:
    store.write_part(stage, "scores", 1, scores(2, "stranger"), PRINT)
    with pytest.raises(CorruptArtifact, match=r"scores-00001\.parquet: .*checksum differs"):
        store.read_table(stage, "scores")


def test_a_part_with_a_right_checksum_but_another_schema_is_named(stage: Path) -> None:
    path = stage / "scores-00000.parquet"
    pq.write_table(scores(3).rename_columns(["a", "b", "c", "d", "e"]), path)
    parts = json.loads((stage / "manifest.json").read_text())["parts"]
    edit_manifest(stage, parts=[{**parts[0], "sha256": files.file_digest(path)}, parts[1]])
    with pytest.raises(CorruptArtifact, match=r"scores-00000\.parquet: not a `scores` table"):
        store.read_table(stage, "scores")


def test_a_part_with_a_right_checksum_that_is_no_parquet_is_named(stage: Path) -> None:
    path = stage / "scores-00000.parquet"
    path.write_text("no parquet")
    parts = json.loads((stage / "manifest.json").read_text())["parts"]
    edit_manifest(stage, parts=[{**parts[0], "sha256": files.file_digest(path)}, parts[1]])
    with pytest.raises(CorruptArtifact, match=r"scores-00000\.parquet: not readable as Parquet"):
        store.read_table(stage, "scores")


def test_asking_for_a_table_that_a_stage_does_not_have_names_those_it_has(stage: Path) -> None:
    with pytest.raises(CorruptArtifact, match="holds no `pairs` table; it has scores"):
        store.read_table(stage, "pairs")


def test_parts_that_the_manifest_does_not_list_are_not_read(stage: Path) -> None:
    store.write_part(stage, "scores", 2, scores(4, "later"), PRINT)
    assert store.read_table(stage, "scores").num_rows == 5


def test_an_unfinished_stage_with_a_broken_part_makes_it_again_rather_than_use_it(folder: Path) -> None:
    path = store.write_part(folder, "scores", 0, scores(3), PRINT)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert not store.has_part(folder, "scores", 0, PRINT)


def test_any_altered_byte_of_a_part_of_an_unfinished_stage_is_noticed_or_harmless(
    folder: Path,
) -> None:
    path = store.write_part(folder, "scores", 0, scores(3), PRINT)
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(flipped(content, position))
        if store.has_part(folder, "scores", 0, PRINT):
            try:
                assert store.read_parts(folder, "scores", PRINT).equals(scores(3)), position
            except CorruptArtifact as error:
                assert "scores-00000.parquet" in str(error)


def test_a_leftover_of_a_killed_writer_is_no_part(folder: Path) -> None:
    store.write_part(folder, "scores", 0, scores(3), PRINT)
    (folder / f".scores-00001.parquet.{os.getpid()}.tmp").write_bytes(b"half")
    assert store.read_parts(folder, "scores", PRINT).num_rows == 3
    store.finish(folder, **{**ACCOUNT, "rows_in": 3, "rows_out": 3, "dropped": {}})
    assert store.read_table(folder, "scores").num_rows == 3


# Tables that gained a column.


def test_a_part_from_before_a_column_was_added_is_read_with_that_column_empty(folder: Path) -> None:
    store.write_part(folder, "scores", 0, scores(3), PRINT)
    path = store.part_path(folder, "scores", 0)
    content = pq.read_table(path)
    pq.write_table(content.drop_columns(["members"]), path)
    assert store.read_parts(folder, "scores", PRINT).equals(scores(3))
    pq.write_table(content.drop_columns(["reward"]), path)
    with pytest.raises(CorruptArtifact, match="not a `scores` table"):
        store.read_parts(folder, "scores", PRINT)


def test_what_parts_left_out_is_counted_by_reason_over_the_parts_of_one_attempt(folder: Path) -> None:
    store.write_part(folder, "scores", 0, scores(3), PRINT, dropped={"a": 2, "b": 1})
    store.write_part(folder, "scores", 1, scores(3), PRINT, dropped={"a": 1})
    store.write_part(folder, "scores", 2, scores(3), PRINT)
    store.write_part(folder, "scores", 3, scores(3), "another", dropped={"a": 9})
    assert store.dropped_rows(folder, "scores", PRINT) == {"a": 3, "b": 1}
    assert store.dropped_rows(folder, "scores", "third") == {}
