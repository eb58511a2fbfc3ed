"""Does it work on text we did not write? The quickstart's recipe on WikiText-2, several seeds.

    python benchmarks/wikitext.py --data FOLDER [--seeds 0 1 2] [--set key=value ...]

Training prompts are 32-token prefixes of validation paragraphs of 70 words or more; held-out prompts and the human text
for perplexity come from the test split. FOLDER holds wikitext2_valid.txt and wikitext2_test.txt, one paragraph a line
(the word-level language modelling example of pytorch/examples has the same text).
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from data import store
from pco.models.rendering import load_tokenizer
from pco.runs.folder import read_config
from pco.stage import Stage

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "wikitext"
MODEL = Path("models/smollm2-135m-instruct")
PREFIX_TOKENS, TEXT_TOKENS = 32, 128
TRAIN, HELDOUT, TEXTS = 64, 32, 32
PARAGRAPH_WORDS = 70  # shorter lines are headings and captions
COLUMNS = ("repetition/greedy", "repetition/sampled", "perplexity", "length", "distinct_2/greedy", "win_vs_previous")
# A plain script on 64 such prefixes: AdamW 5e-5, float32, batch 8, seed 0 (greedy repetition, perplexity).
PLAIN_SCRIPT = [(0.290, 55.6), (0.130, 65.9), (0.065, 76.9)]


def main() -> None:
    arguments = _arguments()
    _prepare(arguments.data)
    runs = {seed: _run(seed, arguments.set) for seed in arguments.seeds}
    _print(runs)
    path = RESULTS / "summary.json"
    path.write_text(json.dumps(runs, indent=1))
    print(f"\nWritten to {path}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for `pco run`")
    return parser.parse_args()


def _prepare(folder: Path) -> None:
    valid, test = (folder / f"wikitext2_{split}.txt" for split in ("valid", "test"))
    if not valid.exists() or not test.exists():
        sys.exit(f"{folder}: holds no wikitext2_valid.txt and wikitext2_test.txt; name their folder with --data.")
    tokenizer = load_tokenizer(MODEL)
    _write("train", "prompt", _prefixes(tokenizer, _paragraphs(valid)[:TRAIN], PREFIX_TOKENS))
    paragraphs = _paragraphs(test)
    _write("heldout", "prompt", _prefixes(tokenizer, paragraphs[:HELDOUT], PREFIX_TOKENS))
    _write("heldout_text", "text", _prefixes(tokenizer, paragraphs[HELDOUT : HELDOUT + TEXTS], TEXT_TOKENS))


def _paragraphs(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if len(line.split()) >= PARAGRAPH_WORDS]


def _prefixes(tokenizer: Any, paragraphs: list[str], tokens: int) -> list[str]:
    return [tokenizer.decode(tokenizer(text)["input_ids"][:tokens]) for text in paragraphs]


def _write(name: str, key: str, texts: list[str]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"id": f"{name}-{i}", key: text}) for i, text in enumerate(texts)]
    (RESULTS / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def _run(seed: int, overrides: list[str]) -> list[dict[str, float]]:
    """Summaries of the starting policy and of each round."""
    label = "-".join(["seed", str(seed), *(one.replace("=", "-").split(".")[-1] for one in overrides)])
    settings = [f"run={label}", f"runs_dir={RESULTS / 'runs'}", f"seed={seed}", *overrides]
    settings += [f"prompts.{name}={RESULTS / f'{name}.jsonl'}" for name in ("train", "heldout", "heldout_text")]
    command = [sys.executable, "-m", "flows.cli", "run", "configs/quickstart.yaml"]
    command += [word for setting in settings for word in ("--set", setting)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    config = read_config((RESULTS / "runs" / label).resolve())
    manifests = [store.read_manifest(Stage("evaluate", i, config, {}).folder) for i in range(config.rounds + 1)]
    return [manifest.metrics for manifest in manifests if manifest is not None]


def _print(runs: dict[int, list[dict[str, float]]]) -> None:
    print(f"{'seed':>6} {'round':>6}" + "".join(f"{column:>20}" for column in COLUMNS))
    for seed, rounds in runs.items():
        for number, metrics in enumerate(rounds):
            values = "".join(f"{metrics.get(column, float('nan')):>20.3f}" for column in COLUMNS)
            print(f"{seed:>6} {number:>6}{values}")
    for number in range(min(len(rounds) for rounds in runs.values())):
        found = [[rounds[number].get(column, float("nan")) for rounds in runs.values()] for column in COLUMNS]
        told = "".join(f"{_mean(values):>20}" for values in found)
        print(f"{'mean':>6} {number:>6}{told}")
    for number, (repetition, perplexity) in enumerate(PLAIN_SCRIPT):
        print(f"{'plain':>6} {number:>6}{repetition:>20.3f}{'':>20}{perplexity:>20.3f}")


def _mean(values: list[float]) -> str:
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
