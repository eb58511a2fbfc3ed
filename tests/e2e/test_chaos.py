"""`make chaos`: a run killed with SIGKILL again and again ends with the tables and weights of one left alone.

Planned kills hit a stage's process, its parent or both at some call to the disk: in shards, checkpoints and weights,
and between rename and manifest. Unplanned ones hit the flow's process at any time.
"""

import random
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from data import files, store
from pco import progress
from pco.config.run import RunConfig
from pco.execution import launcher
from pco.progress import Progress
from pco.runs.status import points
from pco.stage import Stage, round_folder
from tests.e2e.conftest import Case
from tests.points import until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3000)]

SEED = 0
# How often a stage is killed as planned; a round trains and samples longest, so most kills hit there.
PLANNED = {"prepare": 3, "generate": 4, "score": 3, "pair": 3, "train": 6, "evaluate": 3, "decide": 3}
UNPLANNED = 8
LEAST = 50
SHARD, CHECKPOINT_STEPS = 4, 2
CHANGES = {
    "generate__shard_size": SHARD,
    "train__checkpoint_steps": CHECKPOINT_STEPS,
    "train__keep_checkpoints": 2,
    "replay__rounds": 1,
    "train__pairs_per_step": 4,
    "train__epochs": 2,
}


@dataclass
class Ledger:
    """What happened on the way."""

    kills: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    committed: dict[Path, tuple[int, int]] = field(default_factory=dict)


def _environment(case: Case, server: str, chaos: Path) -> Case:
    return case.under(PCO_PROGRESS_EVERY_S="0", PREFECT_API_URL=server, PCO_CHAOS=str(chaos))


def _chaos_folder(case: Case) -> Path:
    folder = case.file.parent / "chaos"
    for name in ("calls", "done"):
        (folder / name).mkdir(parents=True)
    return folder


def _plan(folder: Path, calls: dict[str, int], draw: random.Random) -> None:
    """Tokens for every stage; an attempt gets through its share of the stage's calls before it dies."""
    for name, total in calls.items():
        stage = name.split("-")[-1]
        kills = PLANNED[stage]
        for order in range(kills):
            call = draw.randrange(max(2, 2 * total // (kills + 1)))
            # The flow itself tries a stage again that was killed alone, and waits longer each time: once is enough.
            alone = ["self", "launcher"] if stage == "train" else ["self"]
            victim = alone[order] if order < len(alone) else draw.choice(["flow", "both"])
            (folder / f"{name}-{order:02d}-{call}-{victim}").touch()


def _committed(folder: Path) -> dict[Path, tuple[int, int]]:
    """Every file of finished stages and every shard, with what would change if it were written again."""
    finished = [path for manifest in folder.glob("round-*/*/manifest.json") for path in manifest.parent.iterdir()]
    policies = [
        path for path in folder.glob("round-*/policy/*") if (path.parents[1] / "training/manifest.json").exists()
    ]
    tables = ("candidates", "scores", "pairs", "evaluations")
    shards = [path for table in tables for path in folder.glob(f"round-*/*/{table}-*")]
    files = {path for path in (*finished, *policies, *shards) if path.is_file() and path.suffix != ".tmp"}
    return {path: (stat.st_ino, stat.st_mtime_ns) for path in files for stat in [path.stat()]}


def _stage_processes(folder: Path) -> list[str]:
    listed = subprocess.run(["ps", "-ww", "-eo", "pid,stat,args"], capture_output=True, text=True, check=True)
    lines = [line for line in listed.stdout.splitlines() if str(folder) in line and "pco.execution.worker_main" in line]
    return [line for line in lines if line.split()[1][0] != "Z"]


def _check_after_a_death(case: Case, ledger: Ledger) -> None:
    until(lambda: not _stage_processes(case.folder), "the end of stage processes whose parent was killed")
    now = _committed(case.folder)
    rewritten = [str(path) for path, mark in ledger.committed.items() if now.get(path) != mark]
    assert not rewritten, f"finished work was done again: {rewritten}"
    ledger.committed = now


def _run_until_killed_or_done(case: Case, ledger: Ledger, kill_after_s: float | None) -> bool:
    """Whether the run ended by itself, and well."""
    process = case.start()
    ledger.starts += 1
    try:
        status = process.wait(timeout=kill_after_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        ledger.kills["flow, at any time"] += 1
        return False
    output = case.output.read_text()
    assert status in {0, -signal.SIGKILL} or "was killed by SIGKILL" in output, output
    return status == 0


def _redone(folder: Path, config: RunConfig) -> list[tuple[str, int, int]]:
    """For every attempt but the last at a long stage: what the next did again, and the most allowed.

    In completions or steps, from what attempts told of their progress.
    """
    most = {
        "generate": SHARD * config.generate.n,
        "evaluate": SHARD * (1 + config.evaluate.samples),
        "train": CHECKPOINT_STEPS,
    }
    found = []
    for log in sorted(folder.glob("round-*/logs/*.log")):
        if (allowed := most.get(log.stem)) is None:
            continue
        done = 0
        for attempt in log.read_text(errors="replace").split(launcher.ATTEMPT)[1:]:
            # Not splitlines: an event begins with a separator that it would split at.
            events = [progress.parse(line) for line in attempt.split("\n")]
            counts = [event.done for event in events if isinstance(event, Progress)]
            if not counts:
                continue
            name = f"{log.parent.parent.name} {log.stem}"
            found.append((name, max(0, done - counts[0]), allowed))  # the first event tells what was kept
            done = counts[-1]
    return found


def _accounts(config: RunConfig) -> dict[str, object]:
    """All that a run made: tables without the column of seconds, and the digests of policies."""
    found: dict[str, object] = {}
    for number, name in points(config):
        folder = Stage(name, number, config, {}).folder
        manifest = store.read_manifest(folder)
        assert manifest is not None, folder
        found[f"{number}/{name}/dropped"] = (manifest.rows_in, manifest.rows_out, manifest.dropped)
        for table in {part.table for part in manifest.parts}:
            content = store.read_table(folder, table)
            kept = [column for column in content.column_names if column != "seconds"]
            found[f"{number}/{name}/{table}"] = content.select(kept)
            if kept == content.column_names:
                found[f"{number}/{name}/{table}/bytes"] = [part.sha256 for part in manifest.parts]
        if name == "train":
            found[f"{number}/policy"] = files.folder_digest(round_folder(config, number) / "policy")
    return found


def test_a_run_killed_at_any_moment_ends_as_one_left_alone(make_case: Callable[..., Case], server: str) -> None:
    whole = make_case(**CHANGES)
    counting = _chaos_folder(whole)
    (counting / "record").touch()
    whole = _environment(whole, server, counting)
    status, output = whole.run()
    assert status == 0, output
    calls = {path.name: path.stat().st_size for path in (counting / "calls").iterdir()}

    draw, ledger = random.Random(SEED), Ledger()
    victim = make_case(**CHANGES)
    chaos = _chaos_folder(victim)
    _plan(chaos, calls, draw)
    victim = _environment(victim, server, chaos)
    unplanned = UNPLANNED
    while True:
        at_any_time = unplanned > 0 and ledger.starts % 6 == 5
        unplanned -= at_any_time
        over = _run_until_killed_or_done(victim, ledger, draw.uniform(1, 15) if at_any_time else 1500)
        _check_after_a_death(victim, ledger)
        if over:
            break
    ledger.kills.update(path.name.rsplit("-", 1)[1] for path in (chaos / "done").iterdir())
    redone = _redone(victim.folder, victim.config)
    print(f"\nkills: {sum(ledger.kills.values())} {dict(ledger.kills)}")
    print(f"starts of the run: {ledger.starts}; attempts at long stages: {len(redone)}")
    print(f"work redone in all: {sum(again for _, again, _ in redone)} completions or steps")
    ours, theirs = _accounts(victim.config), _accounts(whole.config)
    assert ours.keys() == theirs.keys()
    differing = [name for name in theirs if ours[name] != theirs[name]]
    print(f"differences: {len(differing)}")
    assert differing == []
    assert len(redone) > 10
    assert [one for one in redone if one[1] > one[2]] == []
    assert sum(ledger.kills.values()) >= LEAST
