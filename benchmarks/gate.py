"""Does the default gate know a bad round? One good round of the quickstart, and some that are bad on purpose.

    python benchmarks/gate.py [--config configs/quickstart.yaml] [--set key=value ...]

Every bad round is a fork of the good one, so what its change leaves valid is shared: all before the training at
another learning rate, the prompts with another reward. The gate is the config's, which for the quickstart is the
default. Prints each round's numbers, the gate's sentence, and in the end which bad rounds were promoted.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data import store
from pco.evaluation import metrics
from pco.runs.folder import read_config
from pco.stage import Stage

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "gate"
GOOD = "good"
MEASURES = ("repetition", "length", "perplexity", "reward")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for `pco run`")
    parser.add_argument("--name", default=time.strftime("%Y%m%d-%H%M%S"), help="the same again resumes")
    arguments = parser.parse_args()
    runs = RESULTS / arguments.name
    _pco("run", arguments.config, settings=[f"runs_dir={runs}", f"run={GOOD}", "rounds=1", *arguments.set])
    rows = [_row(runs / GOOD)]
    for name, settings in _bad(read_config((runs / GOOD).resolve()).train.learning_rate).items():
        if not (runs / name).exists():
            _pco("fork", str(runs / GOOD), name, settings=settings)
        _pco("resume", str(runs / name))
        rows.append(_row(runs / name))
    _print(rows)
    (runs / "benchmark.json").write_text(json.dumps(rows, indent=1))
    print(f"Written to {runs / 'benchmark.json'}")


def _bad(learning_rate: float) -> dict[str, list[str]]:
    """What each bad round changes. To grow in tokens, a completion needs room: there it ends with its sentence."""
    return {
        "learning-rate-x100": [f"train.learning_rate={100 * learning_rate}"],
        "pays-for-characters": [_reward("characters")],
        "pays-for-tokens": [_reward("tokens"), 'generate.stop=["."]'],
        "pays-for-one-word": [_reward("one_word")],
    }


def _reward(function: str) -> str:
    return f"reward={{kind: python, function: 'bad_rewards:{function}', folder: '{HERE}'}}"


def _pco(*words: str, settings: Sequence[str] = ()) -> None:
    flags = [word for setting in settings for word in ("--set", setting)]
    subprocess.run([sys.executable, "-m", "flows.cli", *words, *flags], check=True, stdout=subprocess.DEVNULL)


def _row(run: Path) -> dict[str, Any]:
    config = read_config(run.resolve())
    start, after = (metrics.summarise(metrics.read(Stage("evaluate", n, config, {}).folder)) for n in (0, 1))
    decision = Stage("decide", 1, config, {}).folder
    manifest = store.read_manifest(decision)
    assert manifest is not None
    rules = store.read_table(decision, "decisions").to_pylist()
    return {
        "round": run.name,
        "promoted": manifest.outputs["promoted"] == "yes",
        "stopped by": [rule["rule"] for rule in rules if not rule["passed"]],
        "told": manifest.outputs["reason"],
        **{measure: (start[measure], after[measure]) for measure in MEASURES},
    }


def _print(rows: Sequence[dict[str, Any]]) -> None:
    print(f"{'round':<20}" + "".join(f"{measure:>22}" for measure in MEASURES) + "  verdict")
    for row in rows:
        values = "".join(f"{'{:.4g} -> {:.4g}'.format(*row[measure]):>22}" for measure in MEASURES)
        print(f"{row['round']:<20}{values}  {'promoted' if row['promoted'] else ', '.join(row['stopped by'])}")
    for row in rows:
        print(f"\n{row['round']}: {row['told']}")
    passed = [row["round"] for row in rows if row["promoted"] and row["round"] != GOOD]
    print(f"\nThe good round was {'promoted' if rows[0]['promoted'] else 'REFUSED'}.")
    print(f"Bad rounds that PASSED the gate: {', '.join(passed) or 'none'}.")


if __name__ == "__main__":
    main()
