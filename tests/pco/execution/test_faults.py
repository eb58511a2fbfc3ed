"""What goes wrong around a run: full disks, lost rights, want of memory, damaged files, clocks set back.

Each is a clear error, damages nothing, and the run goes on once the cause is gone.
"""

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data import files, schemas, store
from data.errors import CorruptArtifact, PCOError
from pco.execution import disk_space, launcher
from pco.runs import policy
from pco.runs.folder import opened
from pco.stage import Stage
from pco.training import checkpoints
from tests import builders
from tests.processes import as_nobody, let_everyone_enter

pytestmark = pytest.mark.process

MIB = 2**20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"this user may not mount a small disk: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _fill(disk: Path, leave: int) -> Path:
    """A file that leaves only so many bytes free."""
    filler = disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(disk).free - leave))
    return filler


def _scoring(folder: Path, runs: Path, candidates: int = 2000) -> Stage:
    """A stage that scores candidates, its run on a disk of its own."""
    rows = [builders.candidate_row(os.urandom(9).hex(), 0, [1, 2, 3]) for _ in range(candidates)]
    given = builders.finished(folder / "candidates", {"candidates": rows}, "generate")
    return builders.stage("score", builders.config(folder, runs_dir=str(runs)), {"candidates": given})


# Disks.


def test_a_shard_that_does_not_fit_the_disk_leaves_what_was_committed_and_no_trace_of_itself(small_disk: Path) -> None:
    def shard(rows: int) -> Any:
        return schemas.build("scores", [builders.score_row(os.urandom(99).hex(), i, 0.5) for i in range(rows)])

    folder = small_disk / "scores"
    store.write_part(folder, "scores", 0, shard(10), "f")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    filler = _fill(small_disk, leave=20_000)
    with pytest.raises(PCOError, match=r"scores-00001\.parquet: .*[Nn]o space left"):
        store.write_part(folder, "scores", 1, shard(5000), "f")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    filler.unlink()
    store.write_part(folder, "scores", 1, shard(5000), "f")
    assert store.read_parts(folder, "scores").num_rows == 5010


def test_a_stage_on_a_disk_that_fills_up_says_so_and_goes_on_when_there_is_room(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_space, "_LEAST", 0)
    stage = _scoring(tmp_path, small_disk / "runs")
    stage.config.folder.mkdir(parents=True)
    filler = _fill(small_disk, leave=24_000)
    with pytest.raises(PCOError, match=r"(?i)no space left|disk is full"):
        launcher.run(stage)
    assert store.read_manifest(stage.folder) is None
    filler.unlink()
    assert launcher.run(stage).rows_out == 2000


def test_a_stage_that_needs_more_room_than_there_is_does_not_start(tmp_path: Path, small_disk: Path) -> None:
    stage = _scoring(tmp_path, small_disk / "runs")
    stage.config.folder.mkdir(parents=True)
    with pytest.raises(PCOError, match=r"round 1/2 · score .*0\.10 GiB.* 0\.00 GiB"):
        launcher.run(stage)
    assert not stage.folder.exists()


@pytest.mark.parametrize(
    ("settings", "copies"),
    [
        ({"train__precision": "fp32", "train__checkpoint_steps": 1, "train__keep_checkpoints": 1}, 4 + 2 * (4 + 8)),
        ({"train__precision": "bf16", "train__checkpoint_steps": 1, "train__keep_checkpoints": 2}, 2 + 3 * (2 + 12)),
        ({"train__precision": "bf16", "train__checkpoint_steps": 999}, 2),
        ({"train__precision": "bf16", "train__checkpoint_steps": 1, "train__lora": {"r": 2}}, 2 + 2 * 2),
    ],
)
def test_a_training_needs_room_for_its_policy_and_the_checkpoints_that_exist_at_one_time(
    tmp_path: Path, tiny: Path, tokenizer: Any, settings: dict[str, Any], copies: int
) -> None:
    from transformers import AutoModelForCausalLM

    pairs = builders.finished(tmp_path / "pairs", {"pairs": builders.pair_rows(tokenizer, 40)})
    stage = builders.stage(
        "train", builders.config(tmp_path, tiny, **settings), {"policy": builders.model(tiny), "pairs": pairs}
    )
    parameters = AutoModelForCausalLM.from_pretrained(tiny).num_parameters()
    assert disk_space.needed(stage) - disk_space.needed(_scoring(tmp_path / "score", tmp_path)) == copies * parameters


def test_a_checkpoint_that_does_not_fit_the_disk_is_removed_and_the_earlier_one_stays(
    tmp_path: Path, small_disk: Path
) -> None:
    import torch

    class Engine:
        """Writes as DeepSpeed does."""

        def save_checkpoint(self, folder: str, tag: str, save_latest: bool) -> None:
            (Path(folder) / tag).mkdir()
            torch.save(torch.zeros(MIB), Path(folder) / tag / "model.pt")

    folder = small_disk / checkpoints.FOLDER
    folder.mkdir()
    builders.checkpoint(folder, 1)
    with pytest.raises(PCOError, match="step-00000002: .* GiB"):
        checkpoints.save(Engine(), folder, [{}, {}], "f", of=9, keep=2)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000001", "step-00000001.json"]
    assert checkpoints.progress(small_disk) == (1, 9)


def test_weights_that_do_not_fit_the_disk_leave_the_old_policy(small_disk: Path, tiny: Path) -> None:
    from transformers import AutoModelForCausalLM

    from pco.models.weights import save

    model = AutoModelForCausalLM.from_pretrained(tiny)
    (small_disk / "policy").mkdir()
    (small_disk / "policy/config.json").write_text("old")
    _fill(small_disk, leave=20_000)
    with (
        pytest.raises(PCOError, match="policy: .*No space left"),
        files.atomic_folder(small_disk / "policy") as temporary,
    ):
        save(model, temporary)
    assert (small_disk / "policy/config.json").read_text() == "old"
    assert sorted(path.name for path in small_disk.iterdir()) == ["filler", "policy"]


def test_room_that_an_earlier_attempt_took_is_not_asked_for_again(tmp_path: Path, tiny: Path, tokenizer: Any) -> None:
    pairs = builders.finished(tmp_path / "pairs", {"pairs": builders.pair_rows(tokenizer, 40)})
    config = builders.config(tmp_path, tiny, train__checkpoint_steps=1)
    stage = builders.stage("train", config, {"policy": builders.model(tiny), "pairs": pairs})
    before = disk_space.needed(stage)
    tag = builders.checkpoint(stage.folder / checkpoints.FOLDER, 1)
    (tag / "more").write_bytes(bytes(100_000))
    assert before - 101_000 < disk_space.needed(stage) < before - 99_000


@pytest.mark.parametrize("content", [b"", b"\xff" * 99, b"\x02" + bytes(7) + b"[]"], ids=["empty", "noise", "list"])
def test_weights_with_a_damaged_header_are_left_to_the_stage_to_refuse(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.safetensors").write_bytes(content)
    pairs = builders.finished(tmp_path / "pairs", {"pairs": []})
    inputs = {"policy": builders.model(tmp_path / "model"), "pairs": pairs}
    stage = builders.stage("train", builders.config(tmp_path), inputs)
    stage.config.folder.mkdir(parents=True)
    disk_space.check(stage)


def test_a_lock_that_cannot_be_written_is_a_clear_error(tmp_path: Path, small_disk: Path) -> None:
    config = builders.config(tmp_path, runs_dir=str(small_disk / "runs"))
    config.folder.mkdir(parents=True)
    _fill(small_disk, leave=0)
    with pytest.raises(PCOError, match=r"(?i)\.lock: .*no space left"), opened(config):
        pass


# Rights.


def test_a_part_that_may_not_be_read_is_neither_made_again_nor_taken_for_damaged(tmp_path: Path) -> None:
    let_everyone_enter(tmp_path)
    path = store.write_part(tmp_path / "scores", "scores", 0, schemas.build("scores", []), "f")
    builders.finished(tmp_path / "scores", {}, fingerprint="f")
    path.chmod(0)

    def refused() -> None:
        for look in (
            lambda: store.has_part(tmp_path / "scores", "scores", 0, "f"),
            lambda: store.read_parts(tmp_path / "scores", "scores", "f"),
            lambda: store.read_table(tmp_path / "scores", "scores"),
        ):
            with pytest.raises(PCOError, match=r"scores-00000\.parquet: .*[Pp]ermission denied"):
                look()

    as_nobody(refused)


def test_a_stage_does_not_end_without_one_of_its_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for shard in (0, 2):
        store.write_part(tmp_path, "scores", shard, schemas.build("scores", []), "f", of=3)
    with pytest.raises(PCOError, match="2 of 3 .*`scores`"):
        builders.finished(tmp_path, {}, fingerprint="f")

    def fail(_: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(store.pq, "read_schema", fail)
    with pytest.raises(PCOError, match="Input/output error"):
        builders.finished(tmp_path, {}, fingerprint="f")
    assert store.read_manifest(tmp_path) is None


def test_a_stage_in_a_folder_that_may_no_longer_be_written_says_so_and_goes_on_when_it_may(tmp_path: Path) -> None:
    let_everyone_enter(tmp_path)
    stage = _scoring(tmp_path, tmp_path / "runs", candidates=2)
    stage.config.folder.mkdir(parents=True)

    def refused() -> None:
        with pytest.raises(PCOError, match="permission .*`runs_dir`"):
            launcher.run(stage)

    as_nobody(refused)
    assert launcher.run(stage).rows_out == 2


# Memory.


@pytest.mark.parametrize("hog", ["import torch; torch.empty(2**50)", "bytearray(2**60)"])
def test_a_stage_for_which_memory_runs_out_says_what_to_lower(
    tmp_path: Path, stage_does: Callable[[str], None], hog: str
) -> None:
    stage = _scoring(tmp_path, tmp_path / "runs", candidates=2)
    stage_does(
        f"from pco.stages import score\ndef hog(stage):\n    {hog}\nscore.run = hog\n"
        "from pco.execution import worker_main\nworker_main.main()"
    )
    with pytest.raises(PCOError, match=r"round 1/2 · score: out of memory \("):
        launcher.run(stage)


@pytest.mark.parametrize(("name", "advice"), [("train", "micro_batch_pairs=1"), ("generate", "engine.kv_cache_gib")])
def test_want_of_memory_is_told_with_the_settings_that_need_less(
    name: Any, advice: str, tmp_path: Path, stage_does: Callable[[str], None]
) -> None:
    inputs = {"policy": builders.PRETEND, "pairs": builders.finished(tmp_path / "pairs", {"pairs": []})}
    stage = builders.stage(name, builders.config(tmp_path), inputs)
    stage.config.folder.mkdir(parents=True)
    stage_does(
        "from types import SimpleNamespace\ndef hog(stage):\n    raise MemoryError\n"
        f"sys.modules['pco.stages.{name}'] = SimpleNamespace(run=hog)\nos.environ['RANK'] = '0'\n"
        "from pco.execution import worker_main\nworker_main.main()"
    )
    with pytest.raises(PCOError, match=f"{name}: out of memory .*MemoryError.*{advice}"):
        launcher.run(stage)


# Damaged files.


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)


def test_a_damaged_input_is_named_and_once_it_is_restored_the_stage_runs(tmp_path: Path) -> None:
    stage = _scoring(tmp_path, tmp_path / "runs")
    (part,) = stage.inputs["candidates"].folder.glob("*.parquet")
    _flip(part, 999)
    with pytest.raises(CorruptArtifact, match=r"candidates-00000\.parquet: "):
        launcher.run(stage)
    _flip(part, 999)
    assert launcher.run(stage).rows_out == 2000


@pytest.mark.parametrize("at", [100, -100])
def test_a_damaged_shard_of_an_unfinished_stage_is_made_again(tmp_path: Path, at: int) -> None:
    stage = _scoring(tmp_path, tmp_path / "runs")
    launcher.run(stage)
    (part,) = stage.folder.glob("*.parquet")
    whole = part.read_bytes()
    (stage.folder / store.MANIFEST).unlink()
    _flip(part, at)
    launcher.run(stage)
    assert part.read_bytes() == whole


def test_a_policy_whose_weights_were_cut_short_is_refused_before_it_is_loaded(tmp_path: Path, tiny: Path) -> None:
    copy = tmp_path / "policy"
    shutil.copytree(tiny, copy)
    stage = builders.stage("train", builders.config(tmp_path, copy), {"policy": builders.model(copy)})
    assert policy.verified(stage).folder == copy
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CorruptArtifact, match=r"policy: .*--from train"):
        policy.verified(stage)


def test_what_killed_processes_left_half_written_is_swept_away_and_nothing_else(tmp_path: Path) -> None:
    stage = _scoring(tmp_path, tmp_path / "runs", candidates=2)
    stage.folder.mkdir(parents=True)
    for name in (".scores-00000.parquet.123.tmp", ".manifest.json.123.tmp"):
        (stage.folder / name).write_text("half")
    launcher.run(stage)
    assert sorted(path.name for path in stage.folder.iterdir()) == ["manifest.json", "scores-00000.parquet"]
    with opened(stage.config):
        pass
    (stage.config.folder / ".config.yaml.123.tmp").write_text("half")
    with opened(stage.config):
        assert not list(stage.config.folder.glob(".*.tmp"))


# Clocks.


def test_a_stage_over_which_the_clock_was_set_back_took_no_time_rather_than_less(tmp_path: Path) -> None:
    done = store.finish(
        tmp_path,
        stage="score",
        fingerprint="f",
        unit="rows",
        rows_in=0,
        rows_out=0,
        dropped={},
        inputs={},
        settings={},
        started=time.time() + 3600,
    )
    assert done.seconds == 0
