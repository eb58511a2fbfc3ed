"""How threads should wait: training speed alone and beside other work, for each setting of OpenMP's waiting.

    python benchmarks/threads.py [--seconds 20] [--repeat 2]

Each measurement trains a random-weight model of SmolLM2-135M's shape (8 rows of 88 tokens, forward and backward,
float32) with all cores. Beside it run nothing, one process that keeps a core busy, or as many more such trainings as
the column says. Printed: tokens per second of one training, the median of the repeats. The settings take turns, so that
a machine that changes its speed harms none of them more than the others.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

SETTINGS: dict[str, dict[str, str]] = {
    "as it comes": {},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
}
BESIDE = ("alone", "a busy core", "1 training", "2 trainings")
ROWS, TOKENS = 8, 88
BUSY = "while True: pass"


def main() -> None:
    arguments = _arguments()
    if arguments.train:
        print(_tokens_per_s(arguments.seconds))
        return
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(arguments.repeat):
        for beside in BESIDE:
            for setting in SETTINGS:
                found.setdefault((setting, beside), []).append(_measure(setting, beside, arguments.seconds))
    print(f"{'tokens/s of a training':>26}" + "".join(f"{beside:>14}" for beside in BESIDE))
    for setting in SETTINGS:
        medians = (statistics.median(found[setting, beside]) for beside in BESIDE)
        print(f"{setting:>26}" + "".join(f"{median:>14,.0f}" for median in medians))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure(setting: str, beside: str, seconds: float) -> float:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    environment |= SETTINGS[setting]
    training = [sys.executable, __file__, "--train", "--seconds"]
    with ExitStack() as others:
        if beside == "a busy core":
            others.enter_context(_running([sys.executable, "-c", BUSY], environment))
        elif beside.endswith(("training", "trainings")):
            for _ in range(int(beside.split(maxsplit=1)[0])):
                others.enter_context(_running([*training, "86400"], environment))
        done = subprocess.run([*training, str(seconds)], env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


@contextmanager
def _running(command: list[str], environment: dict[str, str]) -> Iterator[None]:
    with subprocess.Popen(command, env=environment) as process:
        yield
        process.kill()


def _tokens_per_s(seconds: float) -> float:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3}
    model = LlamaForCausalLM(LlamaConfig(**shape, **heads, tie_word_embeddings=True))
    ids = torch.randint(0, 49152, (ROWS, TOKENS))
    steps, began = 0, 0.0
    while not steps or time.monotonic() - began < seconds:
        model(input_ids=ids, labels=ids).loss.backward()
        model.zero_grad()
        if began:
            steps += 1
        else:
            began = time.monotonic()  # the first step warms up
    return steps * ids.numel() / (time.monotonic() - began)


if __name__ == "__main__":
    main()
