"""Does a reward model learn more than that longer answers win? GPT-4's preferences on AlpacaEval answers.

    python benchmarks/reward_training.py PAIRS MODEL [--pairs 20000] [--set train.learning_rate=5e-5 ...]

PAIRS is alpacaeval1_gpt4_pairs.jsonl.gz (the annotations under results/ of tatsu-lab/alpaca_eval, one JSON object a
line), or any other file that `pco data import --kind preferences` reads. MODEL is a language model's or an encoder's
folder. A tenth of the prompts is held out; of the pairs to train on --pairs are drawn. The import is done once.
"""

import argparse
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

from data import store
from pco.config.reward_training import load
from pco.runs.folder import CONFIG
from pco.stage import Stage

RESULTS = Path(__file__).parent / "results" / "reward_training"
CONFIG_FILE = """run: reward
model: model
preferences: preferences
train: {learning_rate: 5.0e-5, pairs_per_step: 32, micro_batch_pairs: 8, precision: fp32, max_pair_tokens: 512}
"""


def main() -> None:
    arguments = _arguments()
    _import(arguments.pairs_file)
    _draw(arguments.pairs)
    config = RESULTS / "reward.yaml"
    config.write_text(CONFIG_FILE)
    label = re.sub(r"[^\w.]+", "-", "-".join([arguments.model.resolve().name, *arguments.set]))
    settings = [f"run={label}", f"runs_dir={RESULTS / 'runs'}", f"model={arguments.model}", *arguments.set]
    settings += [f"preferences={RESULTS / 'train.parquet'}", f"heldout={RESULTS / 'heldout.parquet'}"]
    _pco("reward", "train", str(config), *(word for setting in settings for word in ("--set", setting)))
    _tell(RESULTS / "runs" / label)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs_file", type=Path, metavar="PAIRS")
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--pairs", type=int, default=20_000, help="pairs to train on")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for `pco reward train`")
    return parser.parse_args()


def _import(source: Path) -> None:
    if not source.exists():
        sys.exit(f"{source}: no such file. --help tells where it comes from.")
    if not (RESULTS / "heldout.parquet").exists():
        RESULTS.mkdir(parents=True, exist_ok=True)
        held = ["--heldout-share", "0.1", "--heldout-out", str(RESULTS / "heldout.parquet")]
        _pco("data", "import", str(source), "--kind", "preferences", "--out", str(RESULTS / "all.parquet"), *held)


def _draw(pairs: int) -> None:
    """Of the pairs that are not held out, those to train on."""
    table = pq.read_table(RESULTS / "all.parquet")
    drawn = sorted(random.Random(0).sample(range(table.num_rows), min(pairs, table.num_rows)))
    pq.write_table(table.take(drawn), RESULTS / "train.parquet")


def _pco(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "flows.cli", *words], check=True)


def _tell(folder: Path) -> None:
    config = load(folder / CONFIG)
    trained = store.read_manifest(Stage("train_reward", 0, config, {}).folder).metrics
    tested = store.read_manifest(Stage("test_reward", 0, config, {}).folder).metrics
    path = folder.with_name(f"{folder.name}.json")
    path.write_text(json.dumps({"training": trained, "test": tested}, indent=1))
    print(f"{trained['steps'] / trained['training_s']:.2f} steps/s, {trained['tokens_per_s']:,.0f} tok/s")
    print(f"Written to {path}")


if __name__ == "__main__":
    main()
