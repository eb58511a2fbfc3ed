"""Unlikelihood: its fused form equals the plain one, holds one chunk of logits, and is exact where p nears 0 and 1."""

import math
from typing import Any

import cases
import pytest
import torch
from cases import Case, gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fused import Largest
from torch import Tensor

from pco import losses
from pco.losses import IGNORE


def fused(case: Case, **options: Any) -> losses.Unlikelihood:
    return losses.fused_unlikelihood(*case.hidden, case.weight, head_bias=case.bias, **{"alpha": 0.7, **options})


def both(case: Case, chunk: int = 3) -> tuple[losses.Unlikelihood, losses.Unlikelihood]:
    return fused(case, chunk_tokens=chunk), losses.unlikelihood(*case.logits, alpha=0.7)


@settings(max_examples=30)
@given(cases.cases, st.integers(1, 9), st.integers(0, 999))
def test_values_and_gradients_of_every_part_equal_the_plain_form(case: Case, chunk: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    upstream = torch.randn(4, len(case.chosen), generator=rng, dtype=torch.float64)
    found: list[list[Tensor]] = []
    for result in both(case, chunk):
        parts = torch.stack([result.loss, result.ce, result.unlikelihood, result.margin])
        value = (parts * upstream).sum()
        found.append([parts, *(gradients(value, case.leaves) if value.requires_grad else [])])
    for from_hidden, from_logits in zip(*found, strict=True):
        torch.testing.assert_close(from_hidden, from_logits)


def test_the_gradient_equals_finite_differences() -> None:
    case = cases.make(1, rows=2, chosen=3, rejected=3, vocab=5, dim=2, bias=True)

    def loss(*leaves: Tensor) -> Tensor:
        chosen, rejected, weight, bias = leaves
        labels = case.chosen_labels, case.rejected_labels
        return losses.fused_unlikelihood(
            chosen, labels[0], rejected, labels[1], weight, head_bias=bias, chunk_tokens=2, alpha=0.7
        ).loss

    assert torch.autograd.gradcheck(loss, tuple(case.leaves), nondet_tol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_sure_token_costs_its_lead_and_one_that_cannot_come_costs_nothing(dtype: torch.dtype) -> None:
    # The lead of the label's logit over the only other token: p is 1 to the last digit in one row, 0 in the other.
    logits = torch.tensor([[[1e4, 0.0]], [[0.0, 1e4]]], dtype=dtype, requires_grad=True)
    labels = torch.zeros(2, 1, dtype=torch.long)
    result = losses.unlikelihood(logits, labels, logits, labels, alpha=1.0)
    assert result.unlikelihood.tolist() == [pytest.approx(1e4, rel=5e-3), 0.0]
    (gradient,) = gradients(result.unlikelihood.sum(), [logits])
    torch.testing.assert_close(gradient.double(), torch.tensor([[[1.0, -1.0]], [[0.0, 0.0]]]).double())


def test_a_token_as_likely_as_all_others_together_costs_log_2() -> None:
    logits = torch.tensor([[[math.log(3.0), 0.0, 0.0, 0.0]]])
    labels = torch.zeros(1, 1, dtype=torch.long)
    result = losses.unlikelihood(logits, labels, logits, labels, alpha=1.0)
    assert float(result.unlikelihood) == pytest.approx(math.log(2))


def test_no_tensor_holds_the_vocabulary_for_more_than_one_chunk_of_tokens() -> None:
    case = cases.make(13, rows=2, chosen=60, rejected=60, vocab=500, dim=6, ignore=0.0, bias=True)
    with Largest() as largest:
        fused(case, chunk_tokens=8).loss.sum().backward()
    assert largest.numbers <= 8 * 500


@pytest.mark.parametrize(("frozen", "products"), [(False, 4), (True, 3)])
def test_a_rejected_token_takes_four_products_with_the_head_and_three_with_a_frozen_one(
    frozen: bool, products: int
) -> None:
    case = cases.make(13, rows=2, chosen=1, rejected=60, vocab=500, dim=6, ignore=0.0)
    case.chosen_labels[:] = IGNORE
    case.weight.requires_grad_(not frozen)
    with Largest() as largest:
        fused(case, chunk_tokens=8).loss.sum().backward()
    assert largest.products == products * case.rejected_labels.numel() * 500 * 6


def test_bfloat16_hidden_states_are_summed_in_float32_and_a_frozen_head_gets_no_gradient() -> None:
    case = cases.make(5, dtype=torch.float32)
    case.weight.requires_grad_(False)
    low = case.chosen.bfloat16(), case.chosen_labels, case.rejected.bfloat16(), case.rejected_labels
    result = losses.fused_unlikelihood(*low, case.weight.bfloat16(), alpha=0.7)
    assert result.loss.dtype == torch.float32
    torch.testing.assert_close(result.loss, fused(case).loss, rtol=0.03, atol=0.03)
    found = gradients(result.loss.sum(), [case.chosen, case.rejected])
    expected = gradients(fused(case).loss.sum(), [case.chosen, case.rejected])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0.1, atol=0.1)


def test_empty_completions_give_zeros_and_no_nan() -> None:
    case = cases.make(7, ignore=0.0)
    case.chosen_labels[0] = case.rejected_labels[0] = IGNORE
    for result in both(case):
        assert result.loss[0] == result.margin[0] == 0
        for gradient in gradients(result.loss.sum(), case.leaves):
            assert gradient.isfinite().all()


@pytest.mark.parametrize("alpha", [-0.1, math.nan])
def test_a_weight_that_rewards_rejected_tokens_is_refused(alpha: float) -> None:
    case = cases.make(2)
    for call in (lambda: fused(case, alpha=alpha), lambda: losses.unlikelihood(*case.logits, alpha=alpha)):
        with pytest.raises(ValueError, match="alpha must be"):
            call()


def test_labels_outside_the_vocabulary_and_sides_that_do_not_fit_are_refused() -> None:
    case = cases.make(3, ignore=0.0)
    chosen, chosen_labels, rejected, rejected_labels = case.logits
    with pytest.raises(ValueError, match="outside"):
        losses.unlikelihood(chosen, chosen_labels, rejected, rejected_labels - 20, alpha=1.0)
    with pytest.raises(ValueError, match="row i of each is one pair"):
        losses.unlikelihood(chosen[:2], chosen_labels[:2], rejected, rejected_labels, alpha=1.0)
