"""A loss that is a Python function of the user's: what a training depends on for it, and its calls (docs/losses.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data import store
from data.errors import BadInput, CorruptArtifact
from pco.config.train import PythonLoss
from pco.models import user_code
from pco.models.user_code import UserFunction
from pco.stage import Artifact, Stage

if TYPE_CHECKING:  # torch is not for the light processes that only look at a run
    from torch import Tensor

    from pco.losses import PairLogps

INPUT = "loss"  # what the stage's input is called


def named(loss: PythonLoss) -> UserFunction:
    """The function that the config names."""
    return UserFunction("train.loss", loss.module, loss.function, loss.folder)


def inputs(stage: Stage) -> dict[str, Artifact]:
    """What `train` depends on beside its other inputs: the loss's file, by content; {} for a loss of this package.

    A file that cannot be read any more counts as unchanged, so that a run may be moved without it.

    Raises BadInput when it cannot be read from the start.
    """
    loss = stage.config.train.loss
    if not isinstance(loss, PythonLoss):
        return {}
    return {INPUT: Artifact(Path(loss.folder), _fingerprint(stage, loss))}


def _fingerprint(stage: Stage, loss: PythonLoss) -> str:
    try:
        return user_code.digest(named(loss))
    except BadInput:
        for trained in (stage, Stage("train", 1, stage.config, {})):
            manifest = store.read_manifest(trained.folder)
            if manifest is not None and INPUT in manifest.inputs:
                return manifest.inputs[INPUT]
        raise


def check_unchanged(stage: Stage) -> None:
    """Hold the loss's file to what the stage was started with.

    Raises CorruptArtifact when it changed in between, BadInput when it cannot be read.
    """
    loss, artifact = stage.config.train.loss, stage.inputs.get(INPUT)
    if not isinstance(loss, PythonLoss) or artifact is None:
        return
    digest = user_code.digest(named(loss))
    if digest != artifact.fingerprint:
        raise CorruptArtifact(
            f"{user_code.source(named(loss))}: changed while the run was at work (digest {digest}, expected "
            f"{artifact.fingerprint}). Restore it, or resume the run: it then says which stages are stale."
        )


def call(loss: PythonLoss, pairs: PairLogps) -> Tensor:
    """The loss of each pair (B,), as the user's function gives it.

    Raises BadInput when the function fails or returns anything but one floating point number per pair.
    """
    return _called(_function(loss), named(loss).title, pairs)


@cache
def _function(loss: PythonLoss) -> Callable[..., Any]:
    """One training calls one function: what its module holds is set up once."""
    return user_code.load(named(loss))


def _called(function: Callable[..., Any], title: str, pairs: PairLogps) -> Tensor:
    from torch import Tensor

    count = len(pairs.chosen)
    try:
        values = function(pairs)
    except Exception as error:  # whatever the user's code does
        raise BadInput(f"{title}: failed on {count} pairs ({type(error).__name__}: {error}).") from error
    expected = f"{title}: expected a floating point tensor of shape ({count},), one loss per pair;"
    if not isinstance(values, Tensor):
        raise BadInput(f"{expected} it returned {type(values).__name__}.")
    if values.shape != (count,) or not values.is_floating_point():
        raise BadInput(f"{expected} it returned {values.dtype} of shape {tuple(values.shape)}. Do not reduce it.")
    return values.to(pairs.chosen.dtype)


def check(loss: PythonLoss) -> None:
    """Try the function on sample pairs, one of them with empty completions; its module is run now.

    Raises BadInput when it cannot be imported, fails, returns another shape or a number that is not finite, cannot be
    differentiated, or lets a pair's loss depend on the pairs beside it: it would then depend on `micro_batch_pairs`.
    """
    import torch

    function, title = user_code.load(named(loss)), named(loss).title
    pairs = _sample_pairs(loss)
    values = _called(function, title, pairs)
    if not bool(values.isfinite().all()):
        raise BadInput(f"{title}: returned {values.tolist()}, not all of them finite, for {_described(pairs)}.")
    if not values.requires_grad:
        raise BadInput(
            f"{title}: what it returned cannot be differentiated with respect to `chosen` or `rejected`, so nothing "
            "would be learned. Compute it from them with torch alone, without .item(), .detach() or no_grad."
        )
    gradients = torch.autograd.grad(values.sum(), [pairs.chosen, pairs.rejected], allow_unused=True)
    for side, gradient in zip(("chosen", "rejected"), gradients, strict=True):
        if gradient is not None and not bool(gradient.isfinite().all()):
            raise BadInput(
                f"{title}: the gradient with respect to `{side}` is {gradient.tolist()}, not all of it finite, for "
                f"{_described(pairs)}."
            )
    alone = torch.cat([_called(function, title, _only(pairs, row)) for row in range(len(values))])
    if not torch.allclose(alone, values, rtol=1e-4, atol=1e-5):
        raise BadInput(
            f"{title}: the loss of a pair depends on the pairs beside it (together {values.tolist()}, each alone "
            f"{alone.tolist()}), so the size of micro-batches would change the result. Return each pair's own loss."
        )


def _sample_pairs(loss: PythonLoss) -> PairLogps:
    """Four pairs as training hands them over: better, worse, far apart, empty."""
    import torch

    from pco.losses import PairLogps

    with_reference = loss.reference_policy is not None
    return PairLogps(
        chosen=torch.tensor([-12.0, -30.0, -400.0, 0.0], requires_grad=True),
        rejected=torch.tensor([-25.0, -11.0, -150.0, 0.0], requires_grad=True),
        chosen_tokens=torch.tensor([10.0, 20.0, 200.0, 1.0]),
        rejected_tokens=torch.tensor([15.0, 10.0, 100.0, 1.0]),
        ref_chosen=torch.tensor([-14.0, -28.0, -390.0, 0.0]) if with_reference else None,
        ref_rejected=torch.tensor([-24.0, -12.0, -160.0, 0.0]) if with_reference else None,
    )


def _only(pairs: PairLogps, row: int) -> PairLogps:
    rows = slice(row, row + 1)
    return replace(pairs, **{name: column[rows] for name, column in vars(pairs).items() if column is not None})


def _described(pairs: PairLogps) -> str:
    return ", ".join(f"{name} {column.tolist()}" for name, column in vars(pairs).items() if column is not None)
