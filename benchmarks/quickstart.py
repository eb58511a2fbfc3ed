"""Where the quickstart's time and memory go: a fresh run through `pco run`, watched from outside.

    python benchmarks/quickstart.py [--config configs/quickstart.yaml] [--set key=value ...]

Prints each stage's wall clock (its process's start and imports included), what of it was the engine's start and the
work itself, and what the run took beyond its stages: Prefect, starting processes, the report. Peak memory is the
largest sum of resident sets of the command's whole process tree, sampled five times a second.
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

import rounds

from data import store
from pco.config.run import RunConfig
from pco.runs.folder import read_config
from pco.specs import stages_of
from pco.stage import Stage

RESULTS = Path(__file__).parent / "results" / "quickstart"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for `pco run`")
    arguments = parser.parse_args()
    name = time.strftime("%Y%m%d-%H%M%S")
    settings = [f"runs_dir={RESULTS}", f"run={name}", *arguments.set]
    wall, peak, _ = rounds.watched([sys.executable, "-m", "flows.cli", "run", arguments.config, *_flags(settings)])
    config = read_config((RESULTS / name).resolve())
    rows = _rows(config)
    _print(rows, wall, peak)
    path = config.folder / "benchmark.json"
    path.write_text(json.dumps({"wall_s": wall, "peak_gib": peak, "stages": rows}, indent=1))
    print(f"\nReport: {config.folder / 'report.html'}\nWritten to {path}")


def _flags(settings: list[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def _rows(config: RunConfig) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for number in range(config.rounds + 1):
        for name in stages_of(config, number):
            manifest = store.read_manifest(Stage(name, number, config, {}).folder)
            if manifest is None:
                continue
            metrics = manifest.metrics
            work = metrics.get("sampling_s", metrics.get("training_s"))
            rows.append(
                {
                    "stage": f"{number} {name}",
                    "wall_s": manifest.seconds,
                    "engine_start_s": metrics.get("engine_start_s"),
                    "work_s": work,
                    "tokens_per_s": metrics.get("tokens_per_s"),
                }
            )
    return rows


def _print(rows: list[dict[str, object]], wall: float, peak: float) -> None:
    print(f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores\n")
    columns = ("wall_s", "engine_start_s", "work_s", "tokens_per_s")
    print(f"{'stage':<14}" + "".join(f"{column:>16}" for column in columns))
    for row in rows:
        values = [row[column] for column in columns]
        print(f"{row['stage']:<14}" + "".join(f"{'' if v is None else f'{v:,.1f}':>16}" for v in values))
    stages = sum(float(str(row["wall_s"])) for row in rows)
    print(f"\nstages     {stages:8.1f} s")
    print(f"beyond     {wall - stages:8.1f} s  ({(wall - stages) / wall:.1%} of the run)")
    print(f"whole run  {wall:8.1f} s")
    print(f"peak memory {peak:7.2f} GiB")


if __name__ == "__main__":
    main()
