"""From pairs to optimizer steps and micro-batches, the same ones on every rank."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pco.losses import IGNORE
from pco.seeds import seed_of


@dataclass(frozen=True)
class Example:
    """One preference pair as token ids."""

    pair_id: str
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def longest(self) -> int:
        """Tokens of the longer of its two sequences."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True)
class Step:
    """The pairs of one optimizer step, over all ranks."""

    number: int
    epoch: int
    examples: list[Example]


@dataclass(frozen=True)
class Batch:
    """A micro-batch of B pairs: rows [0, B) hold the chosen sequences, rows [B, 2B) the rejected ones.

    Without any pair it still has B = 1, a placeholder without completions.
    """

    input_ids: Tensor  # (2B, L)
    attention_mask: Tensor  # (2B, L)
    labels: Tensor  # (2B, L): position t holds the token after it, if that is part of a completion, else IGNORE
    generators: list[torch.Generator]  # one per pair, for its contrast tokens
    pairs: int  # B, or 0 for a placeholder, whose statistics must not count


def examples_of(pairs: Sequence[dict[str, Any]]) -> list[Example]:
    """The rows of a `pairs` table as examples."""
    return [
        Example(
            f"{row['prompt_id']}:{row['chosen_sample']}:{row['rejected_sample']}",
            row["prompt_token_ids"],
            row["chosen_token_ids"],
            row["rejected_token_ids"],
        )
        for row in pairs
    ]


def steps(examples: Sequence[Example], *, pairs_per_step: int, epochs: int, seed: object) -> Iterator[Step]:
    """Every epoch visits every pair once, in an order that depends on seed and epoch alone.

    The last step of an epoch may hold fewer pairs; none is left out.
    """
    number = 0
    for epoch in range(epochs):
        order = list(examples)
        random.Random(f"{seed}:{epoch}").shuffle(order)
        for start in range(0, len(order), pairs_per_step):
            yield Step(number, epoch, order[start : start + pairs_per_step])
            number += 1


def micro_batches(step: Step, *, rank: int, world: int, size: int, pad: int, seed: object) -> Iterator[Batch]:
    """This rank's share of a step in micro-batches of at most `size` pairs.

    Every rank gets equally many, because ZeRO's collectives must meet; a rank that runs out of pairs gets one that
    counts for nothing.
    """
    share = step.examples[rank::world]
    largest_share = -(-len(step.examples) // world)
    for start in range(0, largest_share, size):
        yield collate(share[start : start + size], pad=pad, seed=f"{seed}:{step.epoch}")


def collate(examples: Sequence[Example], *, pad: int, seed: object) -> Batch:
    """Pad to the right; prompts are masked out of the labels.

    Each pair's generator depends on `seed` and the pair alone, so its contrast tokens are the same in any micro-batch
    on any rank.
    """
    rows = [(e.prompt, e.chosen) for e in examples] + [(e.prompt, e.rejected) for e in examples]
    rows = rows or [([pad], []), ([pad], [])]
    length = max(len(prompt) + len(completion) for prompt, completion in rows)
    input_ids = torch.full((len(rows), length), pad)
    attention_mask = torch.zeros((len(rows), length), dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORE)
    for i, (prompt, completion) in enumerate(rows):
        end = len(prompt) + len(completion)
        input_ids[i, :end] = torch.tensor(prompt + completion)
        attention_mask[i, :end] = 1
        labels[i, len(prompt) - 1 : end - 1] = torch.tensor(completion)
    seeds = [seed_of("contrast", seed, example.pair_id) for example in examples] or [0]
    generators = [torch.Generator().manual_seed(one) for one in seeds]
    return Batch(input_ids, attention_mask, labels, generators, len(examples))
