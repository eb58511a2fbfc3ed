"""One round here, and the same round as a script with transformers and TRL: time and memory, side by side in one run.

    python benchmarks/round_vs_trl.py --data FOLDER [--model FOLDER] [--repeat 1] [--set key=value ...]

Prompts are 64 prefixes of 28 words of WikiText-2 (FOLDER holds wikitext2_valid.txt); each gets 4 samples of exactly 48
tokens, the longest text is preferred to the shortest, and one epoch of 8-pair steps follows. Both sides write the
trained model. Evaluation is left out, for the script has none.

- `pco`: the stages prepare, generate, score, pair and train, each in its process, as `pco run` starts them.
- `TRL`: transformers' `generate`, then `DPOTrainer`, as their documentation has it: settings are the defaults.
- `TRL, tuned`: the same with what makes it fastest here: no gradient checkpointing, reference log-probabilities
  computed beforehand, and the faster of float32 and bfloat16.
- `plain loop`: the training alone, on pco's pairs: Pairwise Cringe from all logits, padded rows, torch's AdamW in the
  number format that pco took. It tells what layout, head and orchestration are worth.

The last line compares the whole round with that TRL script which is faster.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rounds

HERE = Path(__file__).parent
PROMPTS, WORDS, SAMPLES, TOKENS, PAIRS = 64, 28, 4, 48, 8  # PAIRS: of an optimizer step
LEARNING_RATE = 5e-5
PARTS = ("sampling", "labelling", "training", "the rest")
SETTINGS = (
    "rounds=1",
    "policy.prompt_format=raw",
    f"generate.n={SAMPLES}",
    f"generate.max_tokens={TOKENS}",
    f"generate.min_tokens={TOKENS}",
    "generate.temperature=0.7",
    f"reward={{kind: python, function: 'round_vs_trl:characters', folder: {HERE}}}",
    "train.epochs=1",
    f"train.pairs_per_step={PAIRS}",
    f"train.micro_batch_pairs={PAIRS}",
    f"train.learning_rate={LEARNING_RATE}",
)
TRL = {"TRL": "documented", "TRL, tuned": "tuned-bf16", "TRL, tuned (float32)": "tuned-fp32"}

Row = dict[str, float]


def characters(candidates: Sequence[Mapping[str, Any]]) -> list[float]:
    """The reward: no two samples of a prompt are often equally long, so every prompt gives a pair."""
    return [float(len(candidate["completion"])) for candidate in candidates]


def main() -> None:
    arguments = _arguments()
    if arguments.side:
        print(json.dumps(_side(arguments)))
        return
    found: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory() as folder:
        _write_prompts(arguments.data, Path(folder))
        for turn in range(arguments.repeat):
            here = Path(folder) / f"turn-{turn}"
            here.mkdir()
            sides = {"pco": "pco", **TRL, "plain loop": "plain"}
            for name, side in sides.items():
                found.setdefault(name, []).append(_watched(side, Path(folder), here))
                print(f"# {name}: {found[name][-1]}", flush=True)
    _print({name: _median(rows) for name, rows in found.items()})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--repeat", type=int, default=1, help="turns of all sides; medians are printed")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of pco's side, as for `pco run`"
    )
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folders", type=Path, nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def _write_prompts(data: Path, folder: Path) -> None:
    source = data / "wikitext2_valid.txt"
    if not source.exists():
        sys.exit(f"{source}: not there. Name its folder with --data; it is WikiText-2, a paragraph a line.")
    lines = [line.split() for line in source.read_text(encoding="utf-8").splitlines()]
    prefixes = [" ".join(words[:WORDS]) for words in lines if len(words) >= WORDS]
    for name, texts in (("train", prefixes[:PROMPTS]), ("heldout", prefixes[PROMPTS : PROMPTS + 1])):
        rows = "".join(json.dumps({"prompt": text}) + "\n" for text in texts)
        (folder / f"{name}.jsonl").write_text(rows)
    (folder / "text.jsonl").write_text(json.dumps({"text": prefixes[PROMPTS + 1]}) + "\n")


def _watched(side: str, prompts: Path, here: Path) -> Row:
    """Seconds of each part, tokens a second and the peak memory of one side, in processes of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--folders", str(prompts), str(here)]
    wall, peak, output = rounds.watched(command)
    row: Row = json.loads(output.splitlines()[-1])
    whole = wall - row.pop("not counted", 0.0)
    known = sum(row.get(part, 0.0) for part in PARTS)
    return {**row, "the rest": whole - known, "whole": whole, "GiB": peak}


def _side(arguments: argparse.Namespace) -> Row:
    prompts, here = arguments.folders
    match arguments.side:
        case "pco":
            return _pco(arguments, prompts, here)
        case "plain":
            return _plain(here)
        case how:
            return _trl(arguments.model, how, prompts, here)


def _pco(arguments: argparse.Namespace, prompts: Path, here: Path) -> Row:
    from pco import rounds as order
    from pco.config.run import load
    from pco.execution.executor import LocalExecutor
    from pco.runs.folder import write_config
    from pco.stage import Stage

    files = {"train": "train", "heldout": "heldout", "heldout_text": "text"}
    named = [f"prompts.{key}={prompts / name}.jsonl" for key, name in files.items()]
    settings = [*SETTINGS, *named, f"policy.model={arguments.model}", f"runs_dir={here}", "run=round", *arguments.set]
    config = load(HERE.parent / "configs" / "quickstart.yaml", settings)
    walls: Row = {}
    work: dict[str, Mapping[str, float]] = {}

    def do(stage: Stage) -> Any:
        began = time.monotonic()
        manifest = LocalExecutor().run(stage)
        key = str(stage.name)
        walls[key], work[key] = time.monotonic() - began, manifest.metrics
        if stage.name == "train":
            raise _Trained
        return manifest

    write_config(config, config.folder)
    with contextlib.suppress(_Trained):
        order.walk(config, do)
    return {
        "sampling": work["generate"]["sampling_s"],
        "sampling tok/s": work["generate"]["tokens_per_s"],
        "labelling": walls["score"] + walls["pair"],
        "training": work["train"]["training_s"],
        "training tok/s": work["train"]["tokens_per_s"],
        "not counted": walls["evaluate"],
    }


class _Trained(Exception):
    """The round is as far as a script would be."""


def _trl(model: str, how: str, prompts: Path, here: Path) -> Row:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    torch.manual_seed(0)
    texts = [json.loads(line)["prompt"] for line in (prompts / "train.jsonl").read_text().splitlines()]
    narrow = how == "tuned-bf16"
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16 if narrow else torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    began = time.monotonic()
    samples: list[list[str]] = []
    for start in range(0, len(texts), 16):
        batch = tokenizer(texts[start : start + 16], return_tensors="pt", padding=True)
        lengths = {"min_new_tokens": TOKENS, "max_new_tokens": TOKENS, "num_return_sequences": SAMPLES}
        made = policy.generate(**batch, do_sample=True, temperature=0.7, top_k=0, **lengths)
        new = tokenizer.batch_decode(made[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        samples += [new[at : at + SAMPLES] for at in range(0, len(new), SAMPLES)]
    sampled = time.monotonic()
    rows = [
        {"prompt": text, "chosen": max(of_prompt, key=len), "rejected": min(of_prompt, key=len)}
        for text, of_prompt in zip(texts, samples, strict=True)
    ]
    tuned: dict[str, Any] = {}
    if how != "documented":
        tuned = {"gradient_checkpointing": False, "precompute_ref_log_probs": True, "bf16": False}
    settings = DPOConfig(
        output_dir=str(here / how),
        per_device_train_batch_size=PAIRS,
        num_train_epochs=1,
        learning_rate=LEARNING_RATE,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        **tuned,
    )
    labelled = time.monotonic()
    trainer = DPOTrainer(model=policy, args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.train()
    trained = time.monotonic()
    trainer.save_model()
    completions = [row[side] for row in rows for side in ("chosen", "rejected")]
    tokens = sum(len(ids) for ids in tokenizer(completions)["input_ids"])
    return {
        "sampling": sampled - began,
        "sampling tok/s": len(texts) * SAMPLES * TOKENS / (sampled - began),
        "labelling": labelled - sampled,
        "training": trained - labelled,
        "training tok/s": tokens / (trained - labelled),
    }


def _plain(here: Path) -> Row:
    import torch
    from transformers import AutoModelForCausalLM

    from data import store
    from pco import losses
    from pco.config.formats import DTYPES
    from pco.runs.folder import read_config
    from pco.stage import Stage
    from pco.training import batches

    config = read_config(here / "round")
    pairs = store.read_table(Stage("pair", 1, config).folder, "pairs").to_pylist()
    dtype = getattr(torch, DTYPES[config.train.precision])
    policy = AutoModelForCausalLM.from_pretrained(config.policy.model, dtype=dtype)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE)
    began, tokens = time.monotonic(), 0
    for start in range(0, len(pairs), PAIRS):
        batch = batches.collate(batches.examples_of(pairs[start : start + PAIRS]), pad=0, seed="0")
        logits = policy(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        chosen, rejected = batch.chosen, batch.rejected
        sides = (logits[chosen], batch.labels[chosen], logits[rejected], batch.labels[rejected])
        knobs = config.train.loss.model_dump(include={"alpha", "b", "tau", "k"})
        loss = losses.pairwise_cringe(*sides, generator=batch.generators[chosen], **knobs).loss.sum()
        count = int((batch.labels != losses.IGNORE).sum())
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens += count
    seconds = time.monotonic() - began
    policy.save_pretrained(here / "plain")
    return {"training": seconds, "training tok/s": tokens / seconds}


def _median(rows: Sequence[Row]) -> Row:
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def _print(found: Mapping[str, Row]) -> None:
    print(f"\n{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores\n")
    lines = (*PARTS, "whole", "sampling tok/s", "training tok/s", "GiB")
    print(f"{'seconds':<16}" + "".join(f"{name:>22}" for name in found))
    for line in lines:
        cells = ("" if line not in row else f"{row[line]:,.2f}" for row in found.values())
        print(f"{line:<16}" + "".join(f"{cell:>22}" for cell in cells))
    ours, fastest = found["pco"], min((found[name] for name in TRL), key=lambda row: row["whole"])
    time_ratio, memory = fastest["whole"] / ours["whole"], ours["GiB"] / fastest["GiB"]
    print(f"\nround_vs_trl: {time_ratio:.2f} x faster, {memory:.2f} of the memory")


if __name__ == "__main__":
    main()
