"""The Bradley-Terry objective on top of a Hugging Face sequence classification model (docs/rewards.md).

Per pair: -log sigmoid(reward of chosen - reward of rejected + shift). The shift is known before training: minus the
required margin, plus the prediction from length alone. So a pair's loss does not depend on the other pairs of its
micro-batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers.modeling_layers import GenericForSequenceClassification

from data.errors import BadInput
from pco.config.reward_training import RewardTrain
from pco.losses import IGNORE
from pco.models.protocols import Classifier
from pco.reward_training.pairs import TRAIN
from pco.training.batches import SharedRows, Step, in_rows, shares
from pco.training.layout import Reader

STATISTICS = ("loss", "accuracy", "margin")

_READ = 0  # a label that says no more than that the hidden state is read
_WIDEST, _HALVINGS = 1e3, 60  # the bracket and the steps of the bisection

Tokens = np.ndarray[tuple[int], np.dtype[np.int32]]


@dataclass(frozen=True)
class Compared:
    """One preference as the reward model reads it, and what is added to the difference of its rewards."""

    chosen: Tokens
    rejected: Tokens
    shift: float

    @property
    def tokens(self) -> int:
        return len(self.chosen) + len(self.rejected)


@dataclass(frozen=True)
class Batch:
    """A micro-batch of 2B texts: B chosen ones, then the B rejected ones. An empty one has a placeholder: B is 1."""

    input_ids: Tensor  # (2B, L), padded on the right
    attention_mask: Tensor  # (2B, L)
    labels: Tensor  # (2B, L): IGNORE but where a causal model's reward is read, at the last token that is not padding
    shift: Tensor  # (B,)
    weight: Tensor  # (B,): 1, or 0 for a placeholder
    shared: SharedRows  # the same texts, what both of a pair begin with as their prompt

    @property
    def tells(self) -> bool:
        """Whether a rejected text would be read otherwise if it saw the chosen one."""
        return bool(self.weight.any())

    def to(self, device: torch.device) -> "Batch":
        names = ("input_ids", "attention_mask", "labels", "shift", "weight", "shared")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def compared_of(pairs: pa.Table, train: RewardTrain, weight: float) -> list[Compared]:
    """The training rows of a `reward_pairs` table; `weight` is the result of `length_weight`."""
    rows = training_rows(pairs)
    shifts = train.length_penalty * weight * length_differences(rows)
    if train.margin_scale:
        shifts = shifts - train.margin_scale * rows["margin"].to_numpy()
    sides = (_token_lists(rows[f"{side}_token_ids"]) for side in ("chosen", "rejected"))
    return [Compared(*pair) for pair in zip(*sides, shifts.tolist(), strict=True)]


def training_rows(pairs: pa.Table) -> pa.Table:
    """The pairs of the training side."""
    return pairs.filter(pc.equal(pairs["split"], TRAIN))


def _token_lists(column: pa.ChunkedArray) -> list[Tokens]:
    """Views of a column of lists; Python's own integers would take ten times the memory."""
    lists = column.combine_chunks()
    tokens, ends = lists.values.to_numpy(), lists.offsets.to_numpy()
    return [tokens[start:end] for start, end in zip(ends[:-1], ends[1:], strict=True)]


def length_differences(rows: pa.Table) -> np.ndarray:
    """Per pair the log of how many times longer the chosen completion is, in tokens."""
    chosen, rejected = (np.maximum(rows[f"{side}_length"].to_numpy(), 1) for side in ("chosen", "rejected"))
    differences: np.ndarray = np.log(chosen / rejected)
    return differences


def length_weight(differences: np.ndarray) -> float:
    """How well length alone predicts the preferred text: the w of P(chosen is preferred) = sigmoid(w * difference).

    The maximum of the likelihood with a standard normal prior, which keeps w finite where the longer text always wins.
    It is computed by bisection of the slope, which rises with w.
    """
    low, high = -_WIDEST, _WIDEST
    for _ in range(_HALVINGS):
        weight = (low + high) / 2
        slope = weight - float(np.sum(differences / (1 + np.exp(np.clip(weight * differences, -500, 500)))))
        low, high = (low, weight) if slope > 0 else (weight, high)
    return (low + high) / 2


def micro_batches(step: Step[Compared], *, rank: int, world: int, size: int, pad: int) -> Iterator[Batch]:
    """This rank's share of a step, texts of similar length together; equally many micro-batches on every rank."""
    ordered = sorted(step.examples, key=lambda pair: max(len(pair.chosen), len(pair.rejected)))
    for pairs in shares(ordered, rank, world, size):
        yield collate(pairs, pad)


def collate(pairs: Sequence[Compared], pad: int) -> Batch:
    """Pad to the right."""
    nothing = np.full(1, pad, dtype=np.int32)
    counted = list(pairs) or [Compared(nothing, nothing, 0.0)]
    texts = [pair.chosen for pair in counted] + [pair.rejected for pair in counted]
    input_ids = torch.full((len(texts), max(map(len, texts))), pad)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, IGNORE)
    for i, text in enumerate(texts):
        input_ids[i, : len(text)] = torch.from_numpy(text.copy())
        attention_mask[i, : len(text)] = 1
        labels[i, _read_at(text, pad)] = _READ
    shift = torch.tensor([pair.shift for pair in counted], dtype=torch.float32)
    weight = torch.full_like(shift, 1.0 if pairs else 0.0)
    return Batch(input_ids, attention_mask, labels, shift, weight, _shared(counted, pad))


def _read_at(text: Tokens, pad: int) -> int:
    """Where transformers reads the reward of a causal model: at the last token that is not the padding token."""
    others = np.flatnonzero(text != pad)
    return int(others[-1]) if len(others) else 0


def _shared(pairs: Sequence[Compared], pad: int) -> SharedRows:
    """What both texts begin with, less their last tokens, is their prompt."""
    starts = [_common(pair.chosen, pair.rejected) for pair in pairs]
    rows = [
        (pair.chosen[:start].tolist(), pair.chosen[start:].tolist(), pair.rejected[start:].tolist())
        for pair, start in zip(pairs, starts, strict=True)
    ]
    ids, positions, parts = in_rows(rows, pad)
    chosen, rejected = [], []
    for i, (pair, start) in enumerate(zip(pairs, starts, strict=True)):
        first, second = _read_at(pair.chosen, pad), _read_at(pair.rejected, pad)
        between = len(pair.chosen) - start if second >= start else 0  # the chosen text's own part
        chosen.append([i * ids.shape[1] + first])
        rejected.append([i * ids.shape[1] + second + between])
    source = torch.tensor(chosen + rejected)
    return SharedRows(ids, positions, parts, torch.full_like(source, _READ), source)


def _common(one: Tokens, other: Tokens) -> int:
    """How many tokens both texts begin with, of each of which at least one is left."""
    most = min(len(one), len(other)) - 1
    different = np.flatnonzero(one[:most] != other[:most])
    return int(different[0]) if len(different) else most


def log_row(step: Step[Compared], totals: dict[str, float]) -> dict[str, float]:
    """The columns of `reward_log` that are particular to this objective."""
    count = len(step.examples)
    means = {name: totals[name] / count for name in ("accuracy", "margin")}
    return {"tokens": sum(pair.tokens for pair in step.examples), **means}


class BradleyTerry(torch.nn.Module):
    """A reward model whose forward pass gives the loss of a micro-batch."""

    def __init__(self, model: Classifier, train: RewardTrain) -> None:
        """Raises BadInput where shared prompts are asked of a model that cannot take them, as far as it tells."""
        super().__init__()
        self.model = model
        self._parts = _reader_and_head(model, train)  # in a tuple: torch would register modules of the model twice

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss, summed over the micro-batch, and detached sums (3,) of what STATISTICS names, float64."""
        if self._parts is None:
            logits = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        else:
            reader, head = self._parts
            hidden, labels = reader.read(batch)
            logits = head(hidden[labels != IGNORE])
        chosen, rejected = logits.squeeze(-1).float().chunk(2)
        return objective(chosen - rejected, batch.shift, batch.weight)


def _reader_and_head(model: Any, train: RewardTrain) -> tuple[Reader, Any] | None:
    """Of a causal model, whose head is read at one token; None for others, and where padded rows are asked for."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    if train.layout == "padded":
        return None
    if isinstance(plain, GenericForSequenceClassification):
        body = getattr(plain, plain.base_model_prefix)
        return Reader(body, plain.config, train.layout, longest=train.max_pair_tokens), plain.score
    if train.layout == "shared":
        raise BadInput(f"train.layout: shared: {type(plain).__name__} reads its reward elsewhere. Set padded, or auto.")
    return None


def objective(difference: Tensor, shift: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Of pairs (B,) the summed loss and the sums of the statistics; equal rewards count as half right."""
    loss = -(weight * logsigmoid(difference + shift)).sum()
    right = (torch.sign(difference) + 1) / 2
    sums = [loss, (weight * right).sum(), (weight * difference).sum()]
    return loss, torch.stack([value.detach().double() for value in sums])
