"""What must hold of DPO, IPO and SimPO, by length or not, whatever the numbers are, and at the ends."""

import math
from collections.abc import Callable

import cases
import pytest
import torch
from cases import gradients
from torch import Tensor

from pco import losses
from pco.losses import IGNORE

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def simpo(chosen: Tensor, rejected: Tensor, chosen_tokens: Tensor, rejected_tokens: Tensor) -> Tensor:
    return losses.simpo(chosen, rejected, tokens=(chosen_tokens, rejected_tokens), beta=2.0, gamma=0.5)


def normalized_dpo(chosen: Tensor, rejected: Tensor, chosen_tokens: Tensor, rejected_tokens: Tensor) -> Tensor:
    reference = torch.full_like(chosen, -3.0), torch.full_like(chosen, -4.0)
    return losses.dpo(chosen, rejected, *reference, beta=5.0, tokens=(chosen_tokens, rejected_tokens))


def normalized_ipo(chosen: Tensor, rejected: Tensor, chosen_tokens: Tensor, rejected_tokens: Tensor) -> Tensor:
    reference = torch.full_like(chosen, -3.0), torch.full_like(chosen, -4.0)
    return losses.ipo(chosen, rejected, *reference, beta=0.1, tokens=(chosen_tokens, rejected_tokens))


NORMALIZED = [simpo, normalized_dpo, normalized_ipo]


@pytest.mark.parametrize("loss", [simpo, normalized_dpo])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_margins_of_ten_thousand_a_token_stay_finite_and_right(loss: Loss, dtype: torch.dtype) -> None:
    # One token on each side: nothing is made smaller by the division.
    chosen = torch.tensor([1e4, -1e4], dtype=dtype, requires_grad=True)
    rejected = torch.zeros(2, dtype=dtype, requires_grad=True)
    ones = torch.ones(2, dtype=torch.int64)
    values = loss(chosen, rejected, ones, ones)
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    beta = 2.0 if loss is simpo else 5.0
    assert float(values[0].detach()) == 0
    assert float(values[1].detach()) == pytest.approx(beta * 1e4, rel=5e-3)
    for gradient, sign in zip(gradients(values.sum(), [chosen, rejected]), (-1, 1), strict=True):
        torch.testing.assert_close(gradient.double(), torch.tensor([0.0, sign * beta]).double())


@pytest.mark.parametrize("loss", NORMALIZED)
def test_the_gradient_equals_finite_differences(loss: Loss) -> None:
    rng = torch.Generator().manual_seed(0)
    chosen, rejected = (
        (torch.randn(4, generator=rng, dtype=torch.float64) - 5).requires_grad_() for _ in ("chosen", "rejected")
    )
    tokens = torch.tensor([1, 3, 10, 2]), torch.tensor([4, 3, 1, 7])
    assert torch.autograd.gradcheck(lambda *logps: loss(*logps, *tokens), (chosen, rejected))


@pytest.mark.parametrize("loss", NORMALIZED)
def test_empty_completions_count_as_a_mean_of_0_and_give_no_nan(loss: Loss) -> None:
    case = cases.make(7, rows=3, ignore=0.0)
    case.chosen_labels[0] = IGNORE
    case.rejected_labels[1] = IGNORE
    chosen, rejected = (
        losses.fused_logps(hidden, labels, case.weight)
        for hidden, labels in ((case.chosen, case.chosen_labels), (case.rejected, case.rejected_labels))
    )
    tokens = [(labels != IGNORE).sum(-1) for labels in (case.chosen_labels, case.rejected_labels)]
    values = loss(chosen, rejected, *tokens)
    assert values.isfinite().all()
    found = gradients(values.sum(), case.leaves)
    assert all(gradient.isfinite().all() for gradient in found)
    assert not found[0][0].any() and found[0][1].any()
    assert not found[1][1].any() and found[1][0].any()


@pytest.mark.parametrize("loss", NORMALIZED)
def test_a_batch_of_no_pairs_gives_no_losses(loss: Loss) -> None:
    none = torch.zeros(0)
    assert loss(none, none, none, none).shape == (0,)


@pytest.mark.parametrize("loss", NORMALIZED)
@pytest.mark.parametrize("size", [1, 3, 8])
def test_pairs_have_the_same_losses_in_any_micro_batch(loss: Loss, size: int) -> None:
    rng = torch.Generator().manual_seed(1)
    logps = [-30 * torch.rand(8, generator=rng, dtype=torch.float64) for _ in ("chosen", "rejected")]
    tokens = [torch.randint(1, 20, (8,), generator=rng) for _ in ("chosen", "rejected")]
    columns = [*logps, *tokens]
    parts = [loss(*(column[start : start + size] for column in columns)) for start in range(0, 8, size)]
    assert torch.equal(torch.cat(parts), loss(*columns))


def test_repeating_both_completions_changes_nothing() -> None:
    columns = [torch.tensor([value]) for value in (-6.0, -8.0, -7.0, -7.0)]
    tokens = torch.tensor([3]), torch.tensor([5])
    doubled, twice_tokens = [2 * column for column in columns], tuple(2 * count for count in tokens)
    torch.testing.assert_close(
        losses.dpo(*columns, beta=5.0, tokens=tokens), losses.dpo(*doubled, beta=5.0, tokens=twice_tokens)
    )
    torch.testing.assert_close(
        losses.ipo(*columns, beta=0.1, tokens=tokens), losses.ipo(*doubled, beta=0.1, tokens=twice_tokens)
    )
    torch.testing.assert_close(
        losses.simpo(*columns[:2], beta=2.0, gamma=0.5, tokens=tokens),
        losses.simpo(*doubled[:2], beta=2.0, gamma=0.5, tokens=twice_tokens),
    )


def test_with_one_token_each_length_normalised_dpo_is_dpo_and_ipo_is_ipo() -> None:
    rng = torch.Generator().manual_seed(2)
    columns = [torch.randn(5, generator=rng, dtype=torch.float64) for _ in range(4)]
    ones = torch.ones(5, dtype=torch.int64)
    normalized = losses.dpo(*columns, beta=0.7, label_smoothing=0.1, tokens=(ones, ones))
    torch.testing.assert_close(normalized, losses.dpo(*columns, beta=0.7, label_smoothing=0.1))
    normalized = losses.ipo(*columns, beta=0.7, tokens=(ones, ones))
    torch.testing.assert_close(normalized, losses.ipo(*columns, beta=0.7))


def test_simpo_falls_as_the_margin_grows_and_is_log_2_where_it_equals_gamma() -> None:
    tokens = torch.tensor([2]), torch.tensor([4])
    # Means of -1 and -1.25: beta times their difference is gamma.
    at_gamma = losses.simpo(torch.tensor([-2.0]), torch.tensor([-5.0]), tokens=tokens, beta=2.0, gamma=0.5)
    assert float(at_gamma) == pytest.approx(math.log(2))
    better = losses.simpo(torch.tensor([-1.0]), torch.tensor([-5.0]), tokens=tokens, beta=2.0, gamma=0.5)
    assert better < at_gamma
