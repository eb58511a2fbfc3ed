"""What benchmarks of whole runs share: calling the command line, and a table of a run's rounds."""

import subprocess
import sys
from collections.abc import Sequence

from data import store
from pco.config.run import RunConfig
from pco.runs.status import RunState
from pco.stage import Stage


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
