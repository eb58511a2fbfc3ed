"""Two rounds on dialogues of several turns with a system message: conversations all the way, on real text.

    python benchmarks/dialogues.py INSTRUCTIONS MODEL [--set key=value ...]

INSTRUCTIONS is alpaca_5000.json (tatsu-lab/stanford_alpaca); MODEL the folder of a policy with a chat template. Three
instructions without input are folded into a dialogue: the first two with their answers as earlier turns, the third as
the turn to answer, behind a system message. No instruction is in two dialogues. Prints every round's metrics.
"""

import argparse
import json
from pathlib import Path

import rounds

from pco.runs.folder import read_config

RESULTS = Path(__file__).parent / "results" / "dialogues"
SYSTEM = "You are a helpful assistant. Answer in plain words, and do not repeat yourself."
TURNS, MOST_CHARACTERS = 3, 400  # instructions in a dialogue; of an earlier answer
TRAIN, HELDOUT = 96, 48
COLUMNS = ("reward/greedy", "reward/sampled", "length", "repetition", "perplexity")
SETTINGS = (
    "run=dialogues",
    "policy.prompt_format=chat",
    f"prompts.train={RESULTS / 'train.parquet'}",
    f"prompts.heldout={RESULTS / 'heldout.parquet'}",
    f"runs_dir={RESULTS / 'runs'}",
    "generate.max_tokens=64",
    "engine.max_model_len=1024",
    "train.learning_rate=1e-4",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("instructions", type=Path, metavar="INSTRUCTIONS")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for `pco run`")
    arguments = parser.parse_args()
    dialogues = _dialogues(json.loads(arguments.instructions.read_text()))
    _import(dialogues[:TRAIN], "train")
    _import(dialogues[TRAIN : TRAIN + HELDOUT], "heldout")
    rounds.run("configs/quickstart.yaml", [*SETTINGS, f"policy.model={arguments.model}", *arguments.set])
    rounds.show(read_config(RESULTS / "runs" / "dialogues"), COLUMNS)


def _dialogues(rows: list[dict[str, str]]) -> list[list[dict[str, str]]]:
    usable = [row for row in rows if not row["input"] and 0 < len(row["output"]) <= MOST_CHARACTERS]
    return [_dialogue(usable[start : start + TURNS]) for start in range(0, len(usable) - TURNS + 1, TURNS)]


def _dialogue(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": SYSTEM}]
    for row in rows:
        messages.append({"role": "user", "content": row["instruction"]})
        messages.append({"role": "assistant", "content": row["output"]})
    return messages[:-1]  # the policy answers the last


def _import(dialogues: list[list[dict[str, str]]], name: str) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    source = RESULTS / f"{name}.jsonl"
    source.write_text("".join(json.dumps({"messages": dialogue}) + "\n" for dialogue in dialogues))
    rounds.pco("data", "import", str(source), "--kind", "prompts", "--out", str(RESULTS / f"{name}.parquet"))


if __name__ == "__main__":
    main()
