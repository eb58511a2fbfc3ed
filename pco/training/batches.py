"""From pairs and feedback to optimizer steps and micro-batches, the same ones on every rank."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Generic

import torch
from torch import Tensor
from typing_extensions import TypeVar

from pco.losses import IGNORE
from pco.seeds import seed_of
from pco.training.pair_ids import pair_id

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Example:
    """One preference pair as token ids; `reference` holds the reference's log-probabilities (chosen, rejected)."""

    pair_id: str
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    reference: tuple[float, float] | None = None

    @property
    def longest(self) -> int:
        """Tokens of the longer of its two sequences."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True)
class Rated:
    """One completion with a thumb up or down, as token ids."""

    rated_id: str
    prompt: list[int]
    completion: list[int]
    good: bool

    @property
    def longest(self) -> int:
        """Tokens of its sequence."""
        return len(self.prompt) + len(self.completion)


Pair = TypeVar("Pair", default=Example)
Sized = TypeVar("Sized", Example, Rated)


@dataclass(frozen=True)
class Step(Generic[Pair]):
    """What one optimizer step learns from, over all ranks."""

    number: int
    epoch: int
    examples: list[Pair]
    feedback: list[Rated]


PROMPT, FIRST, SECOND, PADDING = range(4)  # the parts of a row with a shared prompt


@dataclass(frozen=True)
class SharedRows:
    """R sequences in N rows: a prompt, and after it its completions, one or two.

    What is read of a sequence is gathered in a row from the first position on.
    """

    input_ids: Tensor  # (N, S)
    position_ids: Tensor  # (N, S): those of either completion go on from the prompt
    parts: Tensor  # (N, S): PROMPT, FIRST and SECOND completion, PADDING
    labels: Tensor  # (R, T): what is predicted, IGNORE after the last
    source: Tensor  # (R, T): which of the N * S hidden states is read for the label; 0 where there is none

    def mask(self, dtype: torch.dtype) -> Tensor:
        """What is added to the attention scores (N, 1, S, S): a completion sees its prompt and itself."""
        query, key = self.parts.unsqueeze(-1), self.parts.unsqueeze(-2)
        is_seen = ((key == PROMPT) | (key == query)).tril()
        blocked = torch.zeros(is_seen.shape, dtype=dtype, device=is_seen.device)
        return blocked.masked_fill_(~is_seen, torch.finfo(dtype).min).unsqueeze(1)

    def to(self, device: torch.device) -> "SharedRows":
        """The same rows on a device."""
        return SharedRows(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True)
class TokensPerPair:
    """What a step has for each of its pairs; 1 where it has none, so that it can be divided by."""

    chosen: float
    """Tokens of chosen completions: their mean length."""
    feedback: float
    """Tokens of unpaired completions."""

    @staticmethod
    def of(examples: Sequence[Example], feedback: Sequence[Rated]) -> "TokensPerPair":
        """Those of a step with these pairs and this feedback."""
        pairs = max(1, len(examples))
        chosen = sum(len(example.chosen) for example in examples)
        rated = sum(len(piece.completion) for piece in feedback)
        return TokensPerPair(chosen / pairs or 1.0, rated / pairs or 1.0)


@dataclass(frozen=True)
class Batch:
    """A micro-batch of R = 2B + U sequences: B chosen ones, U pieces of feedback, then the B rejected ones.

    Without anything in it B is 1, a placeholder without completions, and `pairs` is 0.
    """

    input_ids: Tensor  # (R, L)
    attention_mask: Tensor  # (R, L)
    labels: Tensor  # (R, L): position t holds the token after it if that is part of a completion, else IGNORE
    generators: list[torch.Generator]  # one for each of the B pairs, then the U completions: for contrast tokens
    pairs: int  # how many of the B pairs count
    good: Tensor  # (U,) bool
    reference: Tensor  # (2, B) log-probabilities of chosen and rejected under the reference; zeros without one
    per_pair: "TokensPerPair"  # of the whole optimizer step
    shared: SharedRows | None = None  # the same sequences in rows with shared prompts, where there are pairs

    @property
    def chosen(self) -> slice:
        """The rows of the chosen sequences."""
        return slice(0, self.reference.shape[1])

    @property
    def rated(self) -> slice:
        """The rows of the feedback."""
        return slice(self.chosen.stop, self.chosen.stop + len(self.good))

    @property
    def rejected(self) -> slice:
        """The rows of the rejected sequences."""
        return slice(self.rated.stop, len(self.labels))

    @property
    def tells(self) -> bool:
        """Whether a rejected completion is predicted from hidden states that would change if they saw the chosen."""
        chosen, rejected = ((self.labels[rows] != IGNORE).sum(-1) for rows in (self.chosen, self.rejected))
        return bool(((chosen > 0) & (rejected > 1)).any())

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device; the generators stay on the CPU, where they give the same numbers everywhere."""
        names = ("input_ids", "attention_mask", "labels", "good", "reference")
        moved = {name: getattr(self, name).to(device) for name in names}
        return replace(self, **moved, shared=None if self.shared is None else self.shared.to(device))


def examples_of(pairs: Sequence[Row], reference: Sequence[Row] = ()) -> list[Example]:
    """The rows of a `pairs` table as examples, joined with the rows of `reference_logps` if there are any."""
    logps = {pair_id(row): (row["chosen_logp"], row["rejected_logp"]) for row in reference}
    return [
        Example(
            pair_id(row),
            row["prompt_token_ids"],
            row["chosen_token_ids"],
            row["rejected_token_ids"],
            logps[pair_id(row)] if logps else None,
        )
        for row in pairs
    ]


def rated_of(feedback: Sequence[Row]) -> list[Rated]:
    """The rows of a `feedback` table."""
    return [
        Rated(f"{row['prompt_id']}:{i}", row["prompt_token_ids"], row["token_ids"], row["good"])
        for i, row in enumerate(feedback)
    ]


def steps(
    examples: Sequence[Pair],
    feedback: Sequence[Rated] = (),
    *,
    pairs_per_step: int,
    epochs: int,
    seed: object,
) -> Iterator[Step[Pair]]:
    """Every epoch visits every pair and every piece of feedback once, in an order that depends on seed and epoch alone.

    The last step of an epoch may hold fewer pairs; none is left out. Feedback is spread evenly over an epoch's steps.
    """
    per_epoch = -(-len(examples) // pairs_per_step)
    for epoch in range(epochs):
        order, rated = list(examples), list(feedback)
        random.Random(f"{seed}:{epoch}").shuffle(order)
        random.Random(f"{seed}:{epoch}:feedback").shuffle(rated)
        for i in range(per_epoch):
            pairs = order[i * pairs_per_step : (i + 1) * pairs_per_step]
            spread = rated[i * len(rated) // per_epoch : (i + 1) * len(rated) // per_epoch]
            yield Step(epoch * per_epoch + i, epoch, pairs, spread)


def micro_batches(step: Step, *, rank: int, world: int, size: int, pad: int, seed: object) -> Iterator[Batch]:
    """This rank's share of a step in micro-batches of at most `size` pairs, or twice as many pieces of feedback.

    Those of similar length come together, which leaves little to pad, and the longest come first, so that a lack of
    memory shows at once. Every rank gets equally many, because ZeRO's collectives must meet; a rank that runs out gets
    one that counts for nothing.
    """
    salt, per_pair = f"{seed}:{step.epoch}", TokensPerPair.of(step.examples, step.feedback)
    for pairs in shares(longest_first(step.examples), rank, world, size):
        yield replace(collate(pairs, pad=pad, seed=salt), per_pair=per_pair)
    for feedback in shares(longest_first(step.feedback), rank, world, 2 * size):
        yield replace(collate([], feedback, pad=pad, seed=salt), per_pair=per_pair)


def longest_first(items: Sequence[Sized]) -> list[Sized]:
    """Pairs or feedback by the length of their longest sequence."""
    return sorted(items, key=lambda item: -item.longest)


def shares(items: list[Any], rank: int, world: int, size: int) -> Iterator[list[Any]]:
    """A rank's items, at most `size` at a time; on every rank equally many times, so the last ones may be empty."""
    share = items[rank::world]
    largest_share = -(-len(items) // world)
    for start in range(0, largest_share, size):
        yield share[start : start + size]


def collate(examples: Sequence[Example], feedback: Sequence[Rated] = (), *, pad: int, seed: object) -> Batch:
    """Pad to the right; prompts are masked out of the labels.

    Each generator depends on `seed` and its pair or completion alone, so the contrast tokens are the same in any
    micro-batch on any rank. Its tokens per pair are its own, as if it were the whole step.
    """
    pairs = list(examples) if examples or feedback else [Example("", [pad], [], [])]
    rows = [(pair.prompt, pair.chosen) for pair in pairs]
    rows += [(rated.prompt, rated.completion) for rated in feedback]
    rows += [(pair.prompt, pair.rejected) for pair in pairs]
    input_ids, attention_mask, labels = _padded(rows, pad)
    names = [pair.pair_id for pair in pairs] + [rated.rated_id for rated in feedback]
    reference = [pair.reference or (0.0, 0.0) for pair in pairs]
    return Batch(
        input_ids,
        attention_mask,
        labels,
        [torch.Generator().manual_seed(seed_of("contrast", seed, name)) for name in names],
        len(examples),
        torch.tensor([rated.good for rated in feedback], dtype=torch.bool),
        torch.tensor(reference, dtype=torch.float64).reshape(-1, 2).T,
        TokensPerPair.of(examples, feedback),
        _shared(pairs, feedback, pad) if pairs else None,
    )


def _padded(rows: Sequence[tuple[list[int], list[int]]], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    length = max(len(prompt) + len(completion) for prompt, completion in rows)
    input_ids = torch.full((len(rows), length), pad)
    attention_mask = torch.zeros((len(rows), length), dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORE)
    for i, (prompt, completion) in enumerate(rows):
        end = len(prompt) + len(completion)
        input_ids[i, :end] = torch.tensor(prompt + completion)
        attention_mask[i, :end] = 1
        labels[i, len(prompt) - 1 : end - 1] = torch.tensor(completion)
    return input_ids, attention_mask, labels


def _shared(pairs: Sequence[Example], feedback: Sequence[Rated], pad: int) -> SharedRows:
    """Rows of the pairs, then of the feedback; a completion's first token is predicted by the prompt's last."""
    rows = [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]
    rows += [(rated.prompt, rated.completion, []) for rated in feedback]
    ids, positions, parts = in_rows(rows, pad)
    first, second = [], []  # by row
    for i, (prompt, completion, other) in enumerate(rows):
        last = i * ids.shape[1] + len(prompt) - 1
        end = last + len(completion)
        first.append([last + j for j in range(len(completion))])
        second.append([last if j == 0 else end + j for j in range(len(other))])
    completions = [row[1] for row in rows] + [row[2] for row in rows[: len(pairs)]]
    return SharedRows(ids, positions, parts, _filled(completions, IGNORE), _filled(first + second[: len(pairs)], 0))


def in_rows(rows: Sequence[tuple[list[int], list[int], list[int]]], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each a prompt with a first and a second completion: ids, positions and parts (N, S), see `SharedRows`."""
    ids = [[*prompt, *first, *second] for prompt, first, second in rows]
    positions, parts = [], []
    for prompt, first, second in rows:
        start = len(prompt)
        positions.append([*range(start + len(first)), *range(start, start + len(second))])
        parts.append([PROMPT] * start + [FIRST] * len(first) + [SECOND] * len(second))
    return _filled(ids, pad), _filled(positions, 0), _filled(parts, PADDING)


def _filled(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Rows of the length of the longest, at least 1."""
    length = max(1, *map(len, rows))
    return torch.tensor([[*row, *[fill] * (length - len(row))] for row in rows])
