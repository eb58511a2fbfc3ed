"""Whether leaving out the pairs that a trace calls harmful changes an answer more than leaving out others.

    python benchmarks/influence.py [--prompts 20] [--pairs 64] [--left-out 10] [--epochs 1] [--loss pairwise_cringe]
        [--seed 0] [--parameters all]

A model of 100 thousand parameters is trained from scratch on text of one grammar, and then on preference pairs with the
project's own objective, steps, contrast tokens and learning rates, AdamW and clipping as in a round. Each answer is
what the trained policy completes greedily to a held-out prompt. For each, the pairs are ranked by
`pco.training.influence`, and the training is repeated without the ones that lowered its log-probability most, and
without as many that are drawn by chance. The table shows by how much the answer's log-probability then rises, in nats:
its mean over the prompts, and the 95 % interval of the paired difference (Student's t).
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

import torch
from transformers import AutoModelForCausalLM

from pco.config.trace import Parameters
from pco.config.train import Train
from pco.evaluation.intervals import paired_interval
from pco.models.rendering import load_tokenizer
from pco.training import influence, loop
from pco.training.batches import Example, Step, examples_of, micro_batches, steps
from pco.training.objective import PairPolicy, divisor

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests import builders, tiny_model

SEED = "0:1"
ANSWER_TOKENS = 24


@dataclass(frozen=True)
class Setting:
    """A starting policy, the pairs, and how it is trained on them."""

    model: Path
    train: Train
    pairs: list[Example]

    def start(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32)

    def plan(self, pairs: Sequence[Example]) -> list[Step[Example]]:
        return list(steps(pairs, pairs_per_step=self.train.pairs_per_step, epochs=self.train.epochs, seed=SEED))

    def trained(self, pairs: Sequence[Example]) -> Any:
        """The policy after a round's training on these pairs."""
        model, train, plan = self.start(), self.train, self.plan(pairs)
        head = model.get_output_embeddings()
        policy = PairPolicy(model, train)
        optimizer = torch.optim.AdamW(model.parameters(), lr=train.learning_rate, weight_decay=train.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: loop.rate(step, len(plan), train))
        for step in plan:
            for batch in micro_batches(step, rank=0, world=1, size=train.micro_batch_pairs, pad=0, seed=SEED):
                loss, _ = policy(batch)
                (loss / divisor(step, train)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), train.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        del head.forward  # the model's own again
        return model.eval()

    def ranked(self, answer: Example, which: Parameters) -> list[str]:
        """The ids of the pairs, the one that lowered the answer's log-probability most first."""
        model, plan = self.start().eval(), self.plan(self.pairs)
        parameters = influence.chosen_parameters(model, which)
        of_answer = influence.gradient(influence.answer_logp(model, answer, 0), parameters)
        by_pair = influence.shares(
            plan,
            rate=lambda step: self.train.learning_rate * loop.rate(step.number, len(plan), self.train),
            divisor=lambda step: divisor(step, self.train),
        )
        policy = PairPolicy(model, self.train)
        moved = {
            pair: influence.influence(policy, shares, of_answer, parameters, pad=0, seed=SEED)
            for pair, shares in by_pair.items()
        }
        return sorted(moved, key=lambda pair: moved[pair])

    def without(self, left_out: Sequence[str]) -> Any:
        return self.trained([pair for pair in self.pairs if pair.pair_id not in left_out])


def answers(model: Any, tokenizer: Any, count: int) -> list[Example]:
    """What a policy completes greedily to prompts that no pair has."""
    examples = []
    for i in range(count):
        prompt = tokenizer(f"{tiny_model.sentences(1, seed=900_000 + i)[0]} held {i}.")["input_ids"]
        ids = model.generate(torch.tensor([prompt]), max_new_tokens=ANSWER_TOKENS, do_sample=False, pad_token_id=0)
        examples.append(Example(str(i), prompt, ids[0, len(prompt) :].tolist(), []))
    return examples


@torch.no_grad()
def logp(model: Any, answer: Example) -> float:
    return float(influence.answer_logp(model, answer, 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--left-out", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--loss", default="pairwise_cringe", choices=["pairwise_cringe", "sft", "simpo"])
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0, help="of the pairs, and of those left out by chance")
    parser.add_argument("--parameters", default="all", choices=get_args(Parameters))
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report(options, tiny_model.make(Path(folder) / "tiny"))
    print(f"{time.monotonic() - began:.0f} s on one thread")


def report(options: argparse.Namespace, model: Path) -> None:
    tokenizer = load_tokenizer(model)
    pairs = examples_of(builders.pair_rows(tokenizer, options.pairs, seed=options.seed))
    train = Train.model_validate(
        {
            "loss": {"kind": options.loss},
            "epochs": options.epochs,
            "learning_rate": options.learning_rate,
            "precision": "fp32",
            "layout": "padded",
        }
    )
    setting = Setting(model, train, pairs)
    whole, draw = setting.trained(pairs), random.Random(options.seed)
    start = setting.start().eval()
    rises: dict[str, list[float]] = {"harmful": [], "random": [], "helpful": []}
    for answer in answers(whole, tokenizer, options.prompts):
        ranked, before = setting.ranked(answer, options.parameters), logp(whole, answer)
        left_out = {
            "harmful": ranked[: options.left_out],
            "random": draw.sample(ranked, options.left_out),
            "helpful": ranked[-options.left_out :],
        }
        for name, ids in left_out.items():
            rises[name].append(logp(setting.without(ids), answer) - before)
        print(f"{answer.pair_id:>3} {logp(start, answer):8.3f} {before:8.3f}", flush=True, file=sys.stderr)
    print(f"{options.prompts} answers; {options.left_out} of {options.pairs} pairs left out; {options.loss}")
    columns = ("rise of the answer, nats", "minus random", "95 % interval", "|rise| larger")
    print(f"{'left out':<10}" + "".join(f"{name:>26}" for name in columns))
    for name, values in rises.items():
        beside_random = list(zip(values, rises["random"], strict=True))
        difference = [rise - random_rise for rise, random_rise in beside_random]
        larger = sum(abs(rise) > abs(random_rise) for rise, random_rise in beside_random)
        line = f"{name:<10}{fmean(values):>26.4f}"
        if name != "random":
            low, high = interval(difference)
            line += f"{fmean(difference):>26.4f}{f'{low:.4f} to {high:.4f}':>26}{f'{larger} of {len(values)}':>26}"
        print(line)


def interval(differences: list[float]) -> tuple[float, float]:
    found = paired_interval(differences)
    return found[-2], found[-1]


if __name__ == "__main__":
    main()
