"""What workers bring, and what handing out shards costs.

    python benchmarks/scale.py [--model FOLDER] [--prompts 64] [--shards 10 100 1000 10000]

First `generate` with one worker of one thread and with two: tokens per second from the moment at which the first engine
is ready. Two cores that are idle should come close to twice as many; cores that share a memory bus, or have other work,
come to less. Without --model it is a model of random weights, of 17 million parameters.

Then what a driver needs for a shard that is no work: a worker answers at once. Predicted: well below a millisecond,
since a number goes there and back through a pipe, and some hundred bytes of memory, since a number waits in a queue.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pco.execution import launcher, messages, pool
from pco.execution.driver import Driver
from pco.execution.messages import Made
from pco.execution.shares import Share
from pco.sharding import ShardedTable
from pco.stage import Stage
from tests import builders

_WORKERS = (1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a Hugging Face folder of a language model")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--shards", type=int, nargs="*", default=[10, 100, 1000, 10_000])
    parser.add_argument("--driver", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.driver is not None:
        print(json.dumps(_hand_out(arguments.driver)))
    else:
        with tempfile.TemporaryDirectory() as folder:
            if arguments.prompts:
                _generate(Path(folder), arguments.model, arguments.prompts)
        _schedule(arguments.shards)


def _generate(folder: Path, model: Path | None, prompts: int) -> None:
    model = model.resolve() if model else _random_model(folder / "model")
    rows = [builders.prompt_row(f"The river number {number} runs") for number in range(prompts)]
    inputs = {
        "policy": builders.model(model),
        "prompts": builders.finished(folder / "prompts", {"prompts": rows}, "prepare"),
    }
    os.environ["OMP_NUM_THREADS"] = "1"
    print(f"{'workers of one thread':>22}{'tokens/s':>12}{'of one worker':>16}{'engine start, s':>18}")
    speeds: list[float] = []
    for workers in _WORKERS:
        config = builders.config(
            folder / str(workers),
            model,
            policy__prompt_format="raw",
            engine__dtype="float32",
            engine__kv_cache_gib=0.5,
            generate__max_tokens=64,
            generate__shard_size=max(1, prompts // 8),
            executor={"kind": "pool", "workers": workers},
        )
        metrics = launcher.run(builders.stage("generate", config, inputs)).metrics
        speeds.append(metrics["tokens_per_s"])
        print(f"{workers:>22}{speeds[-1]:>12,.0f}{speeds[-1] / speeds[0]:>15.2f}x{metrics['engine_start_s']:>18.1f}")


def _random_model(folder: Path) -> Path:
    """Wide enough that its matrix products, and not Python, are most of the work."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from pco.models.rendering import load_tokenizer
    from tests import tiny_model

    tokenizer = load_tokenizer(tiny_model.make(folder.with_name("tiny")))
    torch.manual_seed(0)
    shape = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, **shape, **heads, **ends)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _schedule(counts: list[int]) -> None:
    print(f"\n{'shards':>22}{'ms each':>12}{'driver, MiB':>16}{'more, MiB':>18}")
    for count in counts:
        command = [sys.executable, __file__, "--driver", str(count)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"{count:>22,}{found['ms']:>12.3f}{found['mib']:>16.1f}{found['more_mib']:>18.1f}", flush=True)


def _hand_out(count: int) -> dict[str, float]:
    """Milliseconds for each shard but the first, which waits for the worker, and the driver's peak of memory."""

    def make(index: int, _: Any) -> Any:
        raise AssertionError("the worker makes none")

    with tempfile.TemporaryDirectory() as folder:
        stage: Stage = builders.stage("score", builders.config(Path(folder)))
        stage.log_file.parent.mkdir(parents=True)
        stage.folder.mkdir(parents=True)
        table, before = ShardedTable("scores", [1] * count, make), _peak_mib()
        with pool.Pool(stage, {0: Share({})}, program=(__file__,)) as crew:
            shards = Driver(crew, 1)(stage, table)
            next(shards)
            began = time.monotonic()
            left = sum(1 for _ in shards)
            seconds = time.monotonic() - began
    return {"ms": 1000 * seconds / max(1, left), "mib": _peak_mib(), "more_mib": _peak_mib() - before}


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _answer_at_once(number: int) -> None:
    with Connection(number) as connection:
        try:
            while messages.task(connection.recv_bytes()):
                connection.send_bytes(messages.encoded(Made()))
        except EOFError:
            pass


if __name__ == "__main__":
    if pool.OPTION in sys.argv:
        _answer_at_once(int(sys.argv[sys.argv.index(pool.OPTION) + 1]))
    else:
        main()
