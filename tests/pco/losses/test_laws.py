"""What must hold of Pairwise Cringe whatever the numbers are, and at the ends of their range."""

import math
from typing import Any

import cases
import pytest
import torch
from cases import PLAIN, Case, gradients
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import pad

from pco import losses
from pco.losses import IGNORE, gate


def run(form: str, case: Case, **changes: Any) -> losses.PairwiseCringe:
    options = {**PLAIN, "contrast": case.contrast, **changes}
    if form == "plain":
        return losses.pairwise_cringe(*case.logits, **options)
    return losses.fused_pairwise_cringe(*case.hidden, case.weight, head_bias=case.bias, chunk_tokens=3, **options)


FORMS = ("plain", "fused")
margins = st.lists(st.floats(-50, 50), min_size=2, max_size=5).map(
    lambda values: torch.tensor(sorted(values), dtype=torch.float64)
)


@given(margins, st.floats(-5, 5), st.floats(0.1, 30), st.sampled_from(["soft", "hard", "off"]))
def test_the_gate_never_rises_with_the_margin(margin: Tensor, b: float, tau: float, kind: Any) -> None:
    values = gate(margin, b=b, tau=tau, kind=kind)
    assert (values.diff() <= 0).all()
    assert (values >= 0).all() and (values <= 1).all()


def test_the_soft_gate_is_one_half_at_b_and_falls_strictly() -> None:
    values = gate(torch.tensor([1.0, 2.0, 3.0]), b=2.0, tau=0.7)
    assert values[0] > values[1] > values[2]
    assert values[1] == 0.5


def test_the_hard_gate_is_closed_at_b_itself() -> None:
    values = gate(torch.tensor([1.99, 2.0, 2.01]), b=2.0, tau=1.0, kind="hard")
    assert values.tolist() == [1, 0, 0]


@given(margins, st.floats(-5, 5))
def test_the_soft_gate_tends_to_the_hard_one_as_tau_falls(margin: Tensor, b: float) -> None:
    clear = margin[(margin - b).abs() > 1e-3]
    soft = gate(clear, b=b, tau=1e-6, kind="soft")
    torch.testing.assert_close(soft, gate(clear, b=b, tau=1e-6, kind="hard"))


def test_a_detached_gate_has_the_same_value_and_no_gradient() -> None:
    margin = torch.tensor([0.3, -2.0], requires_grad=True)
    attached, detached = (gate(margin, b=1.0, tau=2.0, detach=flag) for flag in (False, True))
    assert torch.equal(attached, detached)
    assert attached.requires_grad and not detached.requires_grad


@pytest.mark.parametrize("form", FORMS)
def test_with_alpha_0_and_no_gate_the_loss_is_sft(form: str) -> None:
    case = cases.make(1)
    result = run(form, case, alpha=0.0, gate_kind="off")
    expected = losses.sft(case.logits[0], case.chosen_labels)
    torch.testing.assert_close(result.loss, expected)
    found = gradients(result.loss.sum(), case.leaves)
    for one, other in zip(found, gradients(expected.sum(), case.leaves), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("form", FORMS)
@given(st.integers(0, 3), st.integers(0, 3))
def test_padding_changes_neither_value_nor_gradient_whatever_it_holds(form: str, before: int, after: int) -> None:
    case = cases.make(2, ignore=0.0)
    result = run(form, case)
    expected = gradients(result.loss.sum(), case.leaves)

    def wider(hidden: Tensor) -> Tensor:
        return pad(hidden.detach(), (0, 0, before, after), value=torch.nan).requires_grad_()

    padded = Case(
        wider(case.chosen),
        pad(case.chosen_labels, (before, after), value=IGNORE),
        wider(case.rejected),
        pad(case.rejected_labels, (before, after), value=IGNORE),
        case.weight,
        case.bias,
        pad(case.contrast, (before, after), value=IGNORE),
    )
    # Gradients of the logits, because in the plain form NaN hidden states reach the head outside.
    if form == "plain":
        logits = [leaf.detach().requires_grad_() for leaf in (padded.logits[0], padded.logits[2])]
        again = losses.pairwise_cringe(
            logits[0],
            padded.chosen_labels,
            logits[1],
            padded.rejected_labels,
            contrast=padded.contrast,
            **PLAIN,
        )
        found = gradients(again.loss.sum(), logits)
        assert all(grad.isfinite().all() for grad in found)
    else:
        again = run(form, padded)
        found = gradients(again.loss.sum(), padded.leaves)
        for grad, reference in zip(found[:2], expected[:2], strict=True):
            inner = grad[:, before : before + reference.shape[1]]
            torch.testing.assert_close(inner, reference)
            assert not grad[:, :before].any()
            assert not grad[:, before + reference.shape[1] :].any()
        torch.testing.assert_close(found[2], expected[2])
    for name in ("loss", "gate", "margin", "ce", "cringe"):
        torch.testing.assert_close(getattr(again, name), getattr(result, name), msg=name)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_micro_batches_of_any_size_add_up_to_the_whole_step(form: str, size: int) -> None:
    case = cases.make(4, rows=6)
    tokens = sum(int((t != IGNORE).sum()) for t in (case.chosen_labels, case.rejected_labels))

    def step(width: int) -> tuple[Tensor, list[Tensor]]:
        total = torch.zeros((), dtype=torch.float64)
        for start in range(0, 6, width):
            rows = slice(start, start + width)
            part = Case(
                case.chosen[rows],
                case.chosen_labels[rows],
                case.rejected[rows],
                case.rejected_labels[rows],
                case.weight,
                case.bias,
                case.contrast[rows],
            )
            generators = [torch.Generator().manual_seed(row) for row in range(6)][rows]
            result = run(form, part, contrast=None, generator=generators)
            total = total + result.loss.sum() / tokens
        return total, gradients(total, case.leaves)

    whole, parts = step(6), step(size)
    torch.testing.assert_close(parts[0], whole[0])
    for one, other in zip(parts[1], whole[1], strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("form", FORMS)
def test_the_loss_is_a_sum_over_tokens_not_a_mean(form: str) -> None:
    case = cases.make(5, ignore=0.0)
    twice = Case(
        case.chosen.repeat(1, 2, 1),
        case.chosen_labels.repeat(1, 2),
        case.rejected.repeat(1, 2, 1),
        case.rejected_labels.repeat(1, 2),
        case.weight,
        case.bias,
        case.contrast.repeat(1, 2),
    )
    once, doubled = run(form, case, gate_kind="off"), run(form, twice, gate_kind="off")
    for name in ("loss", "margin", "ce", "cringe"):
        torch.testing.assert_close(getattr(doubled, name), 2 * getattr(once, name))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sign", [1, -1])
def test_margins_of_ten_thousand_stay_finite_and_right(form: str, sign: int) -> None:
    # One token on each side, whose logit differs by 1e4 from all others.
    case = cases.make(6, rows=1, chosen=1, rejected=1, vocab=5, dim=1, ignore=0.0)
    with torch.no_grad():
        case.weight[:] = torch.tensor([[1.0], [0], [0], [0], [0]])
        case.chosen[:] = 1e4 * sign
        case.rejected[:] = -1e4 * sign
    case.chosen_labels[:] = 0
    case.rejected_labels[:] = 0
    case.contrast[:] = 1
    result = run(form, case, tau=10.0)
    # A pair in the right order costs nothing. One in the wrong order costs the cross entropy of a
    # token 1e4 below four others, and alpha times a gap of 1e4.
    cost = 0.0 if sign > 0 else 1e4 + math.log(4) + PLAIN["alpha"] * 1e4
    assert float(result.margin.detach()) == pytest.approx(sign * (1e4 + math.log(4)))
    assert float(result.gate.detach()) == (0 if sign > 0 else 1)
    assert float(result.loss.detach()) == pytest.approx(cost)
    assert all(grad.isfinite().all() for grad in gradients(result.loss.sum(), case.leaves))


@pytest.mark.parametrize("gap", [1e4, 300.0, 30.0, -30.0, -300.0, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cringe_term_neither_overflows_nor_vanishes(gap: float, dtype: torch.dtype) -> None:
    logits = torch.tensor([[[gap, 0.0, -5.0]]], dtype=dtype, requires_grad=True)
    term = losses.cringe(logits, torch.tensor([[0]]), torch.tensor([[1]]))
    assert term.dtype == torch.float32
    exact = torch.nn.functional.softplus(logits.detach()[0, 0, 0].double(), threshold=1000)
    torch.testing.assert_close(term[0, 0].double(), exact, rtol=1e-6, atol=1e-40)
    (grad,) = torch.autograd.grad(term.sum(), logits)
    torch.testing.assert_close(
        grad[0, 0].double(),
        torch.sigmoid(exact.new_tensor(gap)) * exact.new_tensor([1.0, -1.0, 0.0]),
        rtol=1e-2,
        atol=1e-30,
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("normalized", [False, True])
def test_an_empty_completion_contributes_nothing_and_no_nan(form: str, normalized: bool) -> None:
    case = cases.make(7, rows=3, ignore=0.0)
    case.chosen_labels[0] = IGNORE
    case.rejected_labels[1] = IGNORE
    case.chosen_labels[2] = IGNORE
    case.rejected_labels[2] = IGNORE
    result = run(form, case, length_normalized_margin=normalized)
    assert float(result.ce[0].detach()) == 0
    assert float(result.cringe[1].detach()) == 0
    assert float(result.loss[2].detach()) == float(result.margin[2].detach()) == 0
    found = gradients(result.loss.sum(), case.leaves)
    assert all(grad.isfinite().all() for grad in found)
    assert float(found[0][[0, 2]].abs().sum()) == 0
    assert float(found[1][[1, 2]].abs().sum()) == 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("chosen", "rejected"), [(0, 0), (0, 2), (2, 0), (1, 1)])
def test_batches_without_any_position_are_fine(form: str, chosen: int, rejected: int) -> None:
    case = cases.make(8, chosen=chosen, rejected=rejected, ignore=0.0)
    for options in ({}, {"contrast": None}):
        result = run(form, case, **options)
        assert result.loss.shape == (3,)
        assert result.contrast.shape == (3, rejected)
        grads = gradients(result.loss.sum(), case.leaves)
        assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_of_no_pairs_is_fine(form: str) -> None:
    result = run(form, cases.make(8, rows=0), contrast=None)
    assert result.loss.shape == (0,)


def test_an_ignored_label_never_reads_a_class_and_class_0_is_never_ignored() -> None:
    logits = torch.zeros(1, 2, 3, requires_grad=True)
    zero, ignored = torch.tensor([[0, IGNORE]]), torch.tensor([[1, IGNORE]])
    terms = losses.cringe(logits, zero, ignored)
    torch.testing.assert_close(terms, torch.tensor([[2.0, 1.0]]).log())
    (grad,) = torch.autograd.grad(terms.sum(), logits)
    assert grad.tolist() == [[[0.5, -0.5, 0], [0, 0, 0]]]


@pytest.mark.parametrize("form", FORMS)
def test_the_contrast_ids_of_a_result_give_the_same_result_again(form: str) -> None:
    case = cases.make(9)
    first = run(form, case, contrast=None, generator=torch.Generator().manual_seed(4))
    again = run(form, case, contrast=first.contrast)
    assert torch.equal(first.contrast, again.contrast)
    assert torch.equal(first.loss, again.loss)
    assert torch.equal(first.contrast == IGNORE, case.rejected_labels == IGNORE)


def test_bfloat16_logits_are_summed_in_float32() -> None:
    logits = torch.randn(2, 400, 7, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.zeros(2, 400, dtype=torch.int64)
    found = losses.completion_logps(logits, labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), losses.completion_logps(logits.double(), labels))
