"""Pairing many candidates in bounded memory: rows a second and peak memory, beside a pandas group-by.

    python benchmarks/pairs.py [--candidates 1000000] [--samples 8] [--tokens 32]

Both make the best-against-worst pair of each prompt from the same Parquet files, each in a process of its own: the
`pair` stage shard by shard, pandas over all rows at once. Memory is the peak of the resident set, less what the process
holds before it begins.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data import schemas, store
from pco.stage import Artifact, Stage
from tests import builders

SHARD_PROMPTS = 8192
MIB = 2**10  # of the kernel's KiB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=1_000_000)
    parser.add_argument("--samples", type=int, default=8, help="candidates of each prompt")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of each candidate")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        peer, folder = arguments.one
        print(json.dumps(_measured({"stage": _stage, "pandas": _pandas}[peer], Path(folder))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder, arguments.candidates, arguments.samples, arguments.tokens)
        print(f"{'':10}{'seconds':>10}{'rows/s':>14}{'memory, MiB':>14}{'pairs':>12}")
        for peer in ("stage", "pandas"):
            found = _spawned(peer, folder)
            rate = arguments.candidates / found["seconds"]
            print(
                f"{peer:10}{found['seconds']:10.1f}{rate:14,.0f}{found['mib']:14,.0f}{found['pairs']:12,}", flush=True
            )


def _spawned(peer: str, folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, "--one", peer, str(folder)], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{peer}: ended with status {done.returncode} (137 and -9: memory ran out)")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measured(work: Any, folder: Path) -> dict[str, Any]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    pairs = work(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": time.monotonic() - began, "mib": (peak - before) / MIB, "pairs": pairs}


def _stage(folder: Path) -> int:
    from pco.stages import pair

    inputs = {name: Artifact(folder / name, "f" * 16) for name in ("candidates", "scores")}
    return int(pair.run(Stage("pair", 1, builders.config(folder), inputs)).metrics["pairs"])


def _pandas(folder: Path) -> int:
    import pandas as pd

    candidates, scores = (
        pd.read_parquet(sorted((folder / name).glob("*.parquet"))) for name in ("candidates", "scores")
    )
    rows = candidates.merge(scores, on=["prompt_id", "sample"])
    by_prompt = rows.groupby("prompt_id", sort=False)["reward"]
    best, worst = rows.loc[by_prompt.idxmax()], rows.loc[by_prompt.idxmin()]
    chosen = best[["prompt_id", "prompt", "prompt_token_ids", "completion", "token_ids", "sample", "reward"]]
    pairs = chosen.merge(worst[["prompt_id", "completion", "token_ids", "sample", "reward"]], on="prompt_id")
    pairs = pairs[pairs.reward_x > pairs.reward_y]
    pairs.to_parquet(folder / "pairs-of-pandas.parquet")
    return len(pairs)


def _write(folder: Path, candidates: int, samples: int, tokens: int) -> None:
    draw = np.random.default_rng(0)
    prompts = candidates // samples
    shards = range(0, prompts, SHARD_PROMPTS)
    for shard, start in enumerate(shards):
        count = min(SHARD_PROMPTS, prompts - start)
        for table, content in _shard(draw, start, count, samples, tokens).items():
            store.write_part(folder / table, table, shard, content, "f" * 16, of=len(shards))
    for table in ("candidates", "scores"):
        builders.finished(folder / table, {})


def _shard(draw: np.random.Generator, start: int, prompts: int, samples: int, tokens: int) -> dict[str, pa.Table]:
    rows = prompts * samples
    ids = np.repeat([f"{start + i:016x}" for i in range(prompts)], samples)
    sample = np.tile(np.arange(samples, dtype=np.int32), prompts)
    words = draw.integers(0, 50_000, (rows, tokens), dtype=np.int32)
    offsets = np.arange(0, rows * tokens + 1, tokens, dtype=np.int32)
    item = schemas.SCHEMAS["candidates"].field("token_ids").type
    token_ids = pa.ListArray.from_arrays(offsets, words.ravel(), type=item)
    text = [" ".join(map(str, row)) for row in words[:, : tokens // 2].tolist()]
    columns = {
        "prompt_id": ids,
        "mode": ["sampled"] * rows,
        "sample": sample,
        "prompt": ["a prompt of some length " * 4] * rows,
        "prompt_token_ids": token_ids,
        "completion": text,
        "token_ids": token_ids,
        "logprob": np.zeros(rows),
        "finish_reason": ["length"] * rows,
        "seed": np.zeros(rows, dtype=np.int64),
        "policy": ["digest"] * rows,
    }
    scores = {
        "prompt_id": ids,
        "sample": sample,
        "reward": draw.random(rows),
        "reward_model": ["digest"] * rows,
        "members": [None] * rows,
    }
    return {name: _table(name, content) for name, content in (("candidates", columns), ("scores", scores))}


def _table(name: str, columns: dict[str, Any]) -> pa.Table:
    schema = schemas.SCHEMAS[name]
    return pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


if __name__ == "__main__":
    main()
