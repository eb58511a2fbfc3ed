"""What benchmarks of whole runs share: calling the command line, watching it, and a table of a run's rounds."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import psutil

from data import store
from pco.config.run import RunConfig
from pco.runs.status import RunState
from pco.stage import Stage

SAMPLE_S = 0.2


def pco(*words: str) -> None:
    """Call the command line; raises CalledProcessError where it fails."""
    subprocess.run([sys.executable, "-m", "flows.cli", *words], check=True)


def run(config: str, settings: Sequence[str]) -> None:
    """`pco run` with settings as `--set` takes them."""
    pco("run", config, *(word for setting in settings for word in ("--set", setting)))


def show(config: RunConfig, columns: Sequence[str]) -> None:
    """Print these metrics of every round, and what the gate said."""
    print(f"{'round':>6}" + "".join(f"{column:>17}" for column in columns))
    for number in range(config.rounds + 1):
        manifest = store.read_manifest(Stage("evaluate", number, config, {}).folder)
        if manifest is not None:
            values = "".join(f"{manifest.metrics.get(column, float('nan')):>17.3f}" for column in columns)
            print(f"{number:>6}{values}")
    print("\n".join(RunState(config).reasons))


def watched(command: Sequence[str]) -> tuple[float, float, str]:
    """Wall clock (s), peak memory (GiB) and output of a command; the memory is that of its whole process tree."""
    began, peak = time.monotonic(), 0
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output)
        tree = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, _resident(tree))
            time.sleep(SAMPLE_S)
        output.seek(0)
        if process.returncode:
            sys.exit(f"{' '.join(command)} failed with status {process.returncode}")
        return time.monotonic() - began, peak / 2**30, output.read()


def _resident(tree: psutil.Process) -> int:
    total = 0
    for process in [tree, *tree.children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total
