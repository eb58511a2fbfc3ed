"""How pairs lie in the rows that a decoder reads: each completion behind a prompt of its own, or both behind one.

With a shared prompt a pair is one row: prompt, chosen, rejected. The rejected completion does not see the chosen one,
and its positions go on from the prompt, so every hidden state is what it is in two rows, but for rounding.
"""

import inspect
import math
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from data.errors import BadInput
from pco.losses import IGNORE
from pco.training.batches import SharedRows

Layout = Literal["auto", "padded", "shared"]

# Whose masks are tensors: a number for every pair of positions, which is added to its score.
_ATTENTION = ("sdpa", "eager")
# How far hidden states of the two layouts may lie apart, as a share of their size.
_TOLERANCE, _TOLERANCE_16_BIT = 1e-3, 0.02
# An operation of masked attention takes as long as so many of a matrix product (measured: docs/performance.md). Rows
# without padding need no mask, and no scores above the diagonal.
_MASKED, _CAUSAL = 3.0, 1.5


class Rows(Protocol):
    """A micro-batch of R sequences in rows of their own, and, where it has pairs, the same with shared prompts."""

    @property
    def input_ids(self) -> Tensor: ...  # (R, L)
    @property
    def attention_mask(self) -> Tensor: ...  # (R, L)
    @property
    def labels(self) -> Tensor: ...  # (R, L), IGNORE where nothing is read from the hidden state
    @property
    def shared(self) -> SharedRows | None: ...
    @property
    def tells(self) -> bool: ...  # whether it would show if a second completion saw the first


class Reader:
    """Reads micro-batches with a model's decoder, in the layout asked for.

    `auto` and `shared` compare both layouts on the first micro-batch that can tell them apart. `auto` then shares the
    prompts of those micro-batches in which that spares more than the larger mask costs.
    """

    def __init__(self, decoder: Any, config: Any, layout: Layout, *, longest: int) -> None:
        """`config` is the model's; `longest` the tokens of the longest prompt and completion that will be read.

        Raises BadInput where `shared` is asked of a model that cannot take it, as far as its config tells.
        """
        self._decoder, self._layout = decoder, layout
        self._is_checked = layout == "padded"
        if layout == "padded":
            return
        if (reason := why_not(decoder, config, longest)) is not None:
            self._refuse(reason)
        else:
            self._attention = _attention_share(decoder, config)

    def read(self, batch: Rows) -> tuple[Tensor, Tensor]:
        """The last hidden states (R, T, D), and the labels (R, T) in the places where these are read.

        Raises BadInput where `shared` is asked of a model whose hidden states come out otherwise.
        """
        if not self._is_checked and batch.shared is not None:
            self._check(batch)
        shared = batch.shared
        if shared is None or not self._is_checked or not self._is_shared(batch, shared):
            return self._padded(batch), batch.labels
        return self._shared(shared), shared.labels

    def _is_shared(self, batch: Rows, shared: SharedRows) -> bool:
        if self._layout != "auto":
            return self._layout == "shared"
        return self._cost(shared.input_ids, _MASKED) < self._cost(batch.input_ids, _CAUSAL)

    def _cost(self, ids: Tensor, weight: float) -> float:
        """What it takes to read rows (N, S), in tokens' matrix products."""
        rows, length = ids.shape
        return rows * length * (1 + weight * self._attention * length)

    def _padded(self, batch: Rows) -> Tensor:
        """(R, L, D)."""
        return self._hidden(batch.input_ids, attention_mask=batch.attention_mask)

    def _shared(self, shared: SharedRows) -> Tensor:
        """(R, T, D): for each label the hidden state that is read for it."""
        mask = shared.mask(next(self._decoder.parameters()).dtype)
        hidden = self._hidden(shared.input_ids, attention_mask=mask, position_ids=shared.position_ids)
        return hidden.flatten(0, 1)[shared.source]

    def _hidden(self, input_ids: Tensor, **how: Tensor) -> Tensor:
        hidden: Tensor = self._decoder(input_ids=input_ids, use_cache=False, **how).last_hidden_state
        return hidden

    def _check(self, batch: Rows) -> None:
        """Decide the layout, together with all ranks; a micro-batch of none that can tell decides nothing."""
        assert batch.shared is not None
        difference = self._difference(batch, batch.shared)
        told = torch.tensor([float(batch.tells), difference], dtype=torch.float64, device=batch.labels.device)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
        can_tell, difference = told.tolist()
        if not can_tell:
            return
        narrow = next(self._decoder.parameters()).dtype in (torch.float16, torch.bfloat16)
        limit = _TOLERANCE_16_BIT if narrow else _TOLERANCE
        if difference <= limit:
            self._is_checked = True
            self._say(f"shared prompts (hidden states differ by {difference:.1e} of their size from padded rows)")
        else:
            self._refuse(f"hidden states differ by {difference:.1e} of their size from those of padded rows")

    @torch.no_grad()
    def _difference(self, batch: Rows, shared: SharedRows) -> float:
        """How far the hidden states that are read lie apart, as a share of their size; inf if it fails."""
        was_training = self._decoder.training
        self._decoder.eval()  # dropout would differ
        try:
            padded = self._padded(batch)[batch.labels != IGNORE].double()
            apart = self._shared(shared)[shared.labels != IGNORE].double() - padded
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):  # it takes no such mask
            return torch.inf
        finally:
            self._decoder.train(was_training)
        difference = float(apart.norm() / padded.norm().clamp(min=1e-30))
        return torch.inf if math.isnan(difference) else difference

    def _refuse(self, reason: str) -> None:
        if self._layout == "shared":
            raise BadInput(f"train.layout: shared: this model cannot share prompts: {reason}. Set padded, or auto.")
        self._layout, self._is_checked = "padded", True
        self._say(f"padded rows: {reason}")

    def _say(self, what: str) -> None:
        if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
            print(f"layout: {what}", flush=True)


def why_not(decoder: Any, config: Any, longest: int) -> str | None:
    """Why a model cannot share prompts, as far as its config and code tell; None where they do not say so."""
    settings = config.get_text_config()
    attention = getattr(settings, "_attn_implementation", None)
    if attention not in _ATTENTION:
        return f"its attention is {attention}; {' and '.join(_ATTENTION)} take a mask of their caller"
    if "position_ids" not in inspect.signature(decoder.forward).parameters:
        return "it takes no position_ids"
    for name in ("sliding_window", "attention_chunk_size"):  # a mask of the caller's takes the place of the window
        window = getattr(settings, name, None)
        if window is not None and window < longest:
            return f"its {name} is {window} tokens, fewer than the {longest} of the longest sequence"
    return None


def _attention_share(decoder: Any, config: Any) -> float:
    """A token's attention to one other, forward, as a share of its matrix products."""
    settings = config.get_text_config()
    embedding = decoder.get_input_embeddings().weight
    products = sum(_count(parameter) for parameter in decoder.parameters()) - _count(embedding)
    heads, size = (getattr(settings, name, None) for name in ("num_attention_heads", "head_dim"))
    width = heads * size if heads and size else embedding.shape[-1]
    return float(2 * settings.num_hidden_layers * width / max(1, products))


def _count(parameter: Any) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))  # under ZeRO-3 a parameter is split
