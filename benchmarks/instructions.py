"""Does a policy follow instructions better after two rounds, by a reward model's word, and does it just write more?

    python benchmarks/instructions.py INSTRUCTIONS MODEL REWARD [--set key=value ...]

INSTRUCTIONS is alpaca_5000.json (tatsu-lab/stanford_alpaca), or any other file that `pco data import --kind prompts`
reads; MODEL the policy's folder; REWARD a reward model's folder, such as benchmarks/reward_training.py leaves behind.
Prints every round's reward beside what the reward must not be: length, repetition, perplexity.
"""

import argparse
import sys
from pathlib import Path

import rounds

from pco.runs.folder import read_config

RESULTS = Path(__file__).parent / "results" / "instructions"
TRAIN, HELDOUT = 128, 64
COLUMNS = ("reward/greedy", "reward/sampled", "win_vs_start", "lc_win_vs_start", "length", "repetition", "perplexity")
SETTINGS = (
    f"prompts.train_limit={TRAIN}",
    f"prompts.heldout_limit={HELDOUT}",
    f"prompts.train={RESULTS / 'train.parquet'}",
    f"prompts.heldout={RESULTS / 'heldout.parquet'}",
    f"runs_dir={RESULTS / 'runs'}",
    "rounds=2",
    "generate.max_tokens=96",
    "engine.max_model_len=1024",
    "pair.min_margin=0",
    "train.learning_rate=1e-4",
    "train.pairs_per_step=8",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("instructions", type=Path, metavar="INSTRUCTIONS")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("reward", metavar="REWARD")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for `pco run`")
    arguments = parser.parse_args()
    _import(arguments.instructions)
    settings = [*SETTINGS, f"policy.model={arguments.model}", f"reward.model={arguments.reward}", *arguments.set]
    rounds.run("configs/instructions.yaml", settings)
    rounds.show(read_config(RESULTS / "runs" / "instructions"), COLUMNS)


def _import(source: Path) -> None:
    if not source.exists():
        sys.exit(f"{source}: no such file. --help tells where it comes from.")
    if not (RESULTS / "heldout.parquet").exists():
        RESULTS.mkdir(parents=True, exist_ok=True)
        held = ["--heldout-share", "0.1", "--heldout-out", str(RESULTS / "heldout.parquet")]
        rounds.pco("data", "import", str(source), "--kind", "prompts", "--out", str(RESULTS / "train.parquet"), *held)


if __name__ == "__main__":
    main()
