"""What resuming costs: finding out that all is done, getting back to work after a kill, committing a shard.

    python benchmarks/resume.py [--config configs/quickstart.yaml]

Three figures, with their bounds: a finished run of ten rounds is recognised without importing torch; after `kill -9` in
the midst of generation, from the command to the moment at which new work begins, beside what the engine takes to start;
and what a shard costs to commit, beside what it costs to make.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from data import store
from pco import progress
from pco.config.run import RunConfig
from pco.execution import launcher
from pco.progress import Progress
from pco.runs.folder import read_config
from pco.stage import Stage, round_folder
from tests import builders

RESULTS = Path(__file__).parent / "results" / "resume"
ROUNDS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/quickstart.yaml")
    arguments = parser.parse_args()
    print(f"{'':58}{'measured':>10}{'bound':>10}")
    _line(f"a finished run of {ROUNDS} rounds: nothing to do", _finished_run(), 2.0)
    name = time.strftime("%Y%m%d-%H%M%S")
    settings = ["rounds=1", f"run={name}", f"runs_dir={RESULTS}", "generate.shard_size=32"]
    command = ["run", arguments.config, *(word for one in settings for word in ("--set", one))]
    run, shard = RESULTS / name, "round-01/candidates/candidates-00000.parquet"
    _killed_when(command, (run / shard).exists)
    log = run / "round-01" / "logs" / "generate.log"
    before = log.stat().st_size
    resumed = time.monotonic()
    _killed_when(["resume", str(run)], lambda: _tells_progress(log, before))
    seconds = time.monotonic() - resumed
    config = read_config((RESULTS / name).resolve())
    engine = _engine_start(config)
    _line("after kill -9: from the command to new work", seconds, engine + 3)
    _line("  of which the engine's start, alone", engine, None)
    commit, making = _commit(config)
    _line("a shard: made", making, None)
    _line("a shard: committed", commit, 0.01 * making)


def _line(what: str, seconds: float, bound: float | None) -> None:
    told = "" if bound is None else f"{bound:8.2f} s"
    print(f"{what:58}{seconds:8.2f} s{told:>10}", flush=True)


def _finished_run() -> float:
    """Seconds of `pco resume` on a run whose stages are all finished (with empty tables)."""
    with tempfile.TemporaryDirectory() as folder:
        builders.write_prompts(Path(folder), ["train"], ["heldout"])
        config = builders.config(Path(folder), rounds=ROUNDS)
        builders.played(config)
        (config.folder / "report.html").touch()
        program = (
            "import sys; from flows.cli import app; app(sys.argv[1:], standalone_mode=False);"
            "assert not {'torch', 'vllm', 'deepspeed', 'prefect'} & set(sys.modules)"
        )
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", program, "resume", str(config.folder)], check=True, capture_output=True)
        return time.monotonic() - began


def _killed_when(arguments: list[str], true: Callable[[], bool]) -> None:
    """Run a command, and kill it once something is the case."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not true():
        if process.poll() is not None:
            sys.exit(f"`pco {' '.join(arguments)}` ended before it could be killed, with status {process.returncode}.")
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def _tells_progress(log: Path, start: int) -> bool:
    """Whether a stage has told of its progress, which it first does when its engine is ready to work."""
    with log.open(encoding="utf-8", errors="replace") as file:
        file.seek(start)
        return any(isinstance(progress.parse(line), Progress) for line in file)


def _engine_start(config: RunConfig) -> float:
    """Seconds of a fresh process that does nothing but start the engine on the run's policy."""
    program = (
        "import sys; from pathlib import Path; from pco.models.engine import Sampler;"
        "from pco.runs.folder import read_config;"
        "config = read_config(Path(sys.argv[1])); Sampler(Path(config.policy.model), config.engine);"
        "import os; os._exit(0)"
    )
    environment = {**launcher.ENVIRONMENT, **os.environ, "HF_HUB_OFFLINE": "1"}
    began = time.monotonic()
    command = [sys.executable, "-c", program, str(config.folder)]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return time.monotonic() - began


def _commit(config: RunConfig) -> tuple[float, float]:
    """Seconds to commit the first shard of candidates again, and to sample one."""
    path = next(iter(sorted(Stage("generate", 1, config, {}).folder.glob("*.parquet"))))
    content = pq.read_table(path).replace_schema_metadata(None)
    evaluation = store.read_manifest(Stage("evaluate", 0, config, {}).folder)
    assert evaluation is not None
    tokens = sum(map(len, content.column("token_ids").to_pylist()))
    with tempfile.TemporaryDirectory(dir=round_folder(config, 1)) as folder:
        began = time.monotonic()
        store.write_part(Path(folder), "candidates", 0, content, "benchmark")
        return time.monotonic() - began, tokens / evaluation.metrics["tokens_per_s"]


if __name__ == "__main__":
    main()
