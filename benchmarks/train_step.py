"""What the fused head does for a real training step: tokens per second and peak memory of the `train` stage.

    python benchmarks/train_step.py [--model FOLDER] [--completion-tokens 48 256] [--set key=value ...]

Trains a few steps of 8 pairs with DeepSpeed, plain and fused by turns. Token ids are random: the cost does not depend
on them. Peak memory is the largest resident set of the training process.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from data import files, schemas, store
from pco.config.run import load
from pco.execution import launcher
from pco.stage import Artifact, Stage

RESULTS = Path(__file__).parent / "results"
PAIRS, PROMPT_TOKENS, STEPS = 8, 40, 4


def main() -> None:
    arguments = _arguments()
    if arguments.one:
        print(json.dumps(_measure(*arguments.one.split(","), arguments)))
        return
    print(f"{'completion tokens':>18} {'head':>6} {'tokens/s':>10} {'peak GiB':>10}")
    rows = []
    for tokens in arguments.completion_tokens:
        for kind in ("plain", "fused"):
            row = _in_a_process(f"{tokens},{kind}")
            rows.append(row)
            print(f"{tokens:>18} {kind:>6} {row['tokens_per_s']:>10,.0f} {row['peak_gib']:>10.2f}", flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "train_step.json").write_text(json.dumps(rows, indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--completion-tokens", type=int, nargs="+", default=[48, 256])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for `pco run`")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def _in_a_process(case: str) -> dict[str, float]:
    """A process of its own, since a process's peak memory never falls."""
    command = [sys.executable, __file__, *sys.argv[1:], "--one", case]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    row: dict[str, float] = json.loads(output.splitlines()[-1])
    return row


def _measure(tokens: str, kind: str, arguments: argparse.Namespace) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"runs_dir={folder}", f"policy.model={arguments.model}", f"train.fused_head={kind == 'fused'}"]
        config = load(Path("configs/quickstart.yaml"), [*settings, *arguments.set])
        model = Path(config.policy.model)
        policy = Artifact(model, files.folder_digest(model))
        stage = Stage("train", 1, config, {"policy": policy, "pairs": _pairs(Path(folder) / "pairs", int(tokens))})
        launcher.run(stage)
        log = store.read_table(stage.folder, "train_log").to_pylist()[1:]  # the first step warms up
    speed = sum(row["tokens"] for row in log) / sum(row["seconds"] for row in log)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return {"completion_tokens": int(tokens), "head": kind, "tokens_per_s": speed, "peak_gib": peak}


def _pairs(folder: Path, tokens: int) -> Artifact:
    draw = random.Random(0)

    def ids(count: int) -> list[int]:
        return [draw.randrange(1000, 40000) for _ in range(count)]

    rows = [
        {
            **dict.fromkeys(("prompt", "chosen", "rejected", "policy"), ""),
            "prompt_id": str(i),
            "prompt_token_ids": ids(PROMPT_TOKENS),
            "chosen_token_ids": ids(tokens),
            "rejected_token_ids": ids(tokens),
            "chosen_sample": 0,
            "rejected_sample": 1,
            "chosen_reward": 1.0,
            "rejected_reward": 0.0,
        }
        for i in range(PAIRS * STEPS)
    ]
    fingerprint = files.digest(["benchmark", tokens])
    store.write_part(folder, "pairs", 0, schemas.build("pairs", rows), fingerprint)
    account = {"unit": "pairs", "rows_in": len(rows), "rows_out": len(rows), "dropped": {}, "started": 0.0}
    store.finish(folder, stage="pair", fingerprint=fingerprint, inputs={}, settings={}, **account)
    return Artifact(folder, fingerprint)


if __name__ == "__main__":
    main()
