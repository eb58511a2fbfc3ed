"""The fused form: equal to the plain one in every respect, and never as large."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import cases
import pytest
import torch
from cases import PLAIN, Case, gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from pco import losses
from pco.losses._fused import gradients as kept

FIELDS = ("loss", "gate", "margin", "ce", "cringe")


def fused(case: Case, **options: Any) -> losses.PairwiseCringe:
    options = {**PLAIN, "head_bias": case.bias, **options}
    if "generator" not in options:
        options.setdefault("contrast", case.contrast)
    return losses.fused_pairwise_cringe(*case.hidden, case.weight, **options)


def plain(case: Case, **options: Any) -> losses.PairwiseCringe:
    options = {**PLAIN, **options}
    if "generator" not in options:
        options.setdefault("contrast", case.contrast)
    return losses.pairwise_cringe(*case.logits, **options)


def assert_same(found: list[Tensor], expected: list[Tensor], **tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


@pytest.fixture(params=["none", "free", "part", "all"])
def keeping(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """How much of the head's gradient the forward keeps: at these sizes it would keep none."""
    free, tokens, chunks, share = {
        "none": (10**9, 10**9, 0, 1),
        "free": (1, 10**9, 0, 1),
        "part": (1, 1, 1, 0),
        "all": (1, 1, 10**6, 0),
    }[request.param]
    monkeypatch.setattr(kept, "FREE_TOKENS", free)
    monkeypatch.setattr(kept, "KEPT_TOKENS", tokens)
    monkeypatch.setattr(kept, "KEPT_CHUNKS", chunks)
    monkeypatch.setattr(kept, "KEPT_SHARE", share)
    yield request.param


@pytest.mark.usefixtures("keeping")
@settings(max_examples=50)
@given(cases.cases, cases.keywords, st.integers(1, 9), st.sampled_from(FIELDS), st.integers(0, 999))
def test_values_and_gradients_equal_the_plain_form_for_all_keywords_and_upstream_gradients(
    case: Case, knobs: dict[str, Any], chunk: int, field: str, seed: int
) -> None:
    one, other = fused(case, chunk_tokens=chunk, **knobs), plain(case, **knobs)
    for name in FIELDS:
        torch.testing.assert_close(getattr(one, name), getattr(other, name))
    assert torch.equal(one.contrast, other.contrast)
    # The loss and each of its parts, so that a caller may add a term of its own to the loss.
    rng = torch.Generator().manual_seed(seed)
    upstream = torch.randn(2, len(case.chosen), generator=rng, dtype=torch.float64)
    values = [
        (result.loss * upstream[0]).sum() + (getattr(result, field) * upstream[1]).sum() for result in (one, other)
    ]
    if values[0].requires_grad:
        assert_same(gradients(values[0], case.leaves), gradients(values[1], case.leaves))


@pytest.mark.usefixtures("keeping")
@pytest.mark.parametrize("detach_gate", [False, True])
def test_gradients_equal_finite_differences(detach_gate: bool) -> None:
    case = cases.make(1, rows=2, chosen=3, rejected=3, vocab=5, dim=2, bias=True)
    # With a detached gate the numeric gradient sees the gate move, the analytic one must not.
    kind = "off" if detach_gate else "soft"

    def loss(*leaves: Tensor) -> Tensor:
        moved = Case(
            leaves[0],
            case.chosen_labels,
            leaves[1],
            case.rejected_labels,
            leaves[2],
            leaves[3],
            case.contrast,
        )
        return fused(moved, chunk_tokens=2, gate_kind=kind).loss

    # Its second backward recomputes what the first found ready, with other rounding.
    assert torch.autograd.gradcheck(loss, case.leaves, nondet_tol=1e-10)


@pytest.mark.usefixtures("keeping")
def test_a_second_backward_through_one_graph_gives_the_same_gradients() -> None:
    case = cases.make(2, bias=True)
    loss = fused(case, chunk_tokens=4).loss.sum()
    first = torch.autograd.grad(loss, case.leaves, retain_graph=True)
    copies = [grad.clone() for grad in first]
    assert_same(list(torch.autograd.grad(loss, case.leaves)), copies)
    assert_same(list(first), copies)


@pytest.mark.usefixtures("keeping")
@settings(max_examples=20)
@given(st.integers(1, 30))
def test_the_size_of_the_chunks_changes_nothing(chunk: int) -> None:
    case = cases.make(3, bias=True)
    one, other = fused(case, chunk_tokens=chunk), fused(case)
    torch.testing.assert_close(one.loss, other.loss)
    assert_same(gradients(one.loss.sum(), case.leaves), gradients(other.loss.sum(), case.leaves))


def test_both_forms_sample_the_same_ids_from_the_same_generator() -> None:
    case = cases.make(4, vocab=3000, rows=4)
    one = fused(case, chunk_tokens=3, generator=torch.Generator().manual_seed(5))
    other = plain(case, generator=torch.Generator().manual_seed(5))
    assert torch.equal(one.contrast, other.contrast)
    torch.testing.assert_close(one.loss, other.loss)


@pytest.mark.usefixtures("keeping")
@pytest.mark.parametrize("frozen", ["hidden", "head", "weight", "bias", "chosen", "all"])
def test_inputs_that_need_no_gradient_get_none_and_leave_the_others_right(frozen: str) -> None:
    case = cases.make(5, bias=True)
    expected = dict(zip(range(4), gradients(plain(case).loss.sum(), case.leaves), strict=True))
    names = {
        "hidden": (0, 1),
        "head": (2, 3),
        "weight": (2,),
        "bias": (3,),
        "chosen": (0,),
        "all": range(4),
    }
    for index in names[frozen]:
        case.leaves[index].requires_grad_(False)
    result = fused(case, chunk_tokens=4)
    torch.testing.assert_close(result.loss, plain(case).loss)
    left = [index for index in range(4) if index not in names[frozen]]
    if not left:
        assert not result.loss.requires_grad
        return
    found = torch.autograd.grad(result.loss.sum(), [case.leaves[index] for index in left])
    assert_same(list(found), [expected[index] for index in left])


def test_tied_heads_add_both_gradients() -> None:
    case = cases.make(6, dim=3)

    def loss(form: str) -> Tensor:
        chosen, rejected = (case.weight[ids.clamp(min=0)].tanh() for ids in (case.chosen_labels, case.rejected_labels))
        tied = Case(
            chosen,
            case.chosen_labels,
            rejected,
            case.rejected_labels,
            case.weight,
            None,
            case.contrast,
        )
        return (fused(tied) if form == "fused" else plain(tied)).loss.sum()

    assert_same(gradients(loss("fused"), [case.weight]), gradients(loss("plain"), [case.weight]))


@pytest.mark.usefixtures("keeping")
@pytest.mark.parametrize("seeded_inside", [False, True])
def test_non_reentrant_checkpointing_changes_nothing_even_while_sampling(
    seeded_inside: bool,
) -> None:
    case = cases.make(7, bias=True)
    trunk = torch.eye(4, dtype=torch.float64, requires_grad=True)

    def loss(weight: Tensor) -> Tensor:
        moved = replace(case, chosen=(case.chosen @ weight).tanh(), rejected=(case.rejected @ weight).tanh())
        # torch restores its default generator for the recomputation, but no other one.
        generator = torch.Generator().manual_seed(1) if seeded_inside else None
        return fused(moved, chunk_tokens=4, generator=generator).loss.sum()

    leaves = [trunk, *case.leaves]
    torch.manual_seed(1)
    expected = gradients(loss(trunk), leaves)
    torch.manual_seed(1)
    value: Tensor = checkpoint(loss, trunk, use_reentrant=False)
    assert_same(gradients(value, leaves), expected)


def test_a_head_released_between_forward_and_backward_as_zero_3_does_is_read_anew() -> None:
    case = cases.make(8)
    head = torch.nn.Parameter(case.weight.detach().clone())
    expected = gradients(plain(case).loss.sum(), case.leaves)
    result = losses.fused_pairwise_cringe(*case.hidden, head, contrast=case.contrast, **PLAIN)
    whole = head.data
    head.data = torch.empty(0, dtype=whole.dtype)
    head.data = whole.clone()
    result.loss.sum().backward()
    assert head.grad is not None
    torch.testing.assert_close(head.grad, expected[2])


@pytest.mark.usefixtures("keeping")
def test_bfloat16_inputs_are_summed_in_float32() -> None:
    exact = cases.make(9, chosen=40, rejected=40, vocab=50, dim=16, scale=0.4)
    rounded = [leaf.detach().bfloat16().requires_grad_() for leaf in exact.leaves]
    low = Case(
        rounded[0],
        exact.chosen_labels,
        rounded[1],
        exact.rejected_labels,
        rounded[2],
        None,
        exact.contrast,
    )
    high = [leaf.detach().double().requires_grad_() for leaf in rounded]
    reference = Case(high[0], exact.chosen_labels, high[1], exact.rejected_labels, high[2], None, exact.contrast)
    one, other = fused(low, tau=100.0), plain(reference, tau=100.0)
    assert one.loss.dtype == torch.float32
    torch.testing.assert_close(one.loss.double(), other.loss, rtol=3e-3, atol=0)
    expected = gradients(other.loss.sum(), high)
    for found, right in zip(gradients(one.loss.sum(), rounded), expected, strict=True):
        assert found.dtype == torch.bfloat16
        error = (found.double() - right).norm() / right.norm()
        assert error < 2e-2


@pytest.mark.usefixtures("keeping")
def test_under_autocast_it_computes_in_the_dtype_that_the_plain_head_would() -> None:
    case = cases.make(10, chosen=30, rejected=30, vocab=40, dim=8, bias=True, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        one, other = fused(case), plain(case)
    assert one.loss.dtype == torch.float32
    torch.testing.assert_close(one.ce, other.ce, rtol=1e-3, atol=1e-3)
    found, expected = (gradients(result.loss.sum(), case.leaves) for result in (one, other))
    for grad, right in zip(found, expected, strict=True):
        assert grad.dtype == torch.float32
        assert (grad - right).norm() < 3e-2 * right.norm()
    torch.testing.assert_close(one.loss, fused(case).loss, rtol=2e-2, atol=2e-2)


def test_a_float32_head_takes_bfloat16_hidden_states() -> None:
    case = cases.make(11, dtype=torch.float32)
    low = Case(
        case.chosen.bfloat16(),
        case.chosen_labels,
        case.rejected.bfloat16(),
        case.rejected_labels,
        case.weight,
        None,
        case.contrast,
    )
    upcast = Case(
        low.chosen.float(),
        case.chosen_labels,
        low.rejected.float(),
        case.rejected_labels,
        case.weight,
        None,
        case.contrast,
    )
    torch.testing.assert_close(fused(low).loss, plain(upcast).loss)


@pytest.mark.usefixtures("keeping")
@settings(max_examples=15)
@given(st.integers(0, 2**31))
def test_binary_cringe_has_the_gradients_of_its_plain_form(seed: int) -> None:
    case = cases.make(seed, rows=4, bias=True)
    good = torch.tensor([True, False, False, True])
    options: dict[str, Any] = {"alpha": 0.6, "k": 3}
    one = losses.fused_binary_cringe(
        case.chosen,
        case.chosen_labels,
        good,
        case.weight,
        head_bias=case.bias,
        chunk_tokens=5,
        generator=torch.Generator().manual_seed(seed),
        **options,
    )
    other = losses.binary_cringe(
        case.logits[0],
        case.chosen_labels,
        good,
        generator=torch.Generator().manual_seed(seed),
        **options,
    )
    torch.testing.assert_close(one.loss, other.loss)
    assert torch.equal(one.contrast, other.contrast)
    leaves = [case.chosen, case.weight, *([case.bias] if case.bias is not None else [])]
    upstream = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    assert_same(
        gradients((one.loss * upstream).sum(), leaves),
        gradients((other.loss * upstream).sum(), leaves),
    )


@pytest.mark.usefixtures("keeping")
def test_dpo_on_fused_log_probabilities_has_the_gradients_of_the_plain_ones() -> None:
    case = cases.make(12, rows=4, bias=True)
    leaves = [case.chosen, case.weight]

    def loss(logps: Tensor) -> Tensor:
        return losses.dpo(*logps.chunk(2), *logps.detach().chunk(2), beta=0.3).sum()

    found = loss(losses.fused_logps(case.chosen, case.chosen_labels, case.weight, head_bias=case.bias, chunk_tokens=4))
    expected = loss(losses.completion_logps(case.logits[0], case.chosen_labels))
    torch.testing.assert_close(found, expected)
    assert_same(gradients(found, leaves), gradients(expected, leaves))


class Largest(TorchDispatchMode):
    """Remembers the size of the largest result of any operation, and every shape of a product."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0
        self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        if func.overloadpacket.__name__ in ("mm", "addmm", "addmm_"):
            left, right = args[-2:]
            self.products += left.shape[0] * left.shape[1] * right.shape[1]
        return result


@pytest.mark.usefixtures("keeping")
@pytest.mark.parametrize("detach_gate", [False, True])
def test_no_tensor_ever_holds_the_vocabulary_for_more_than_one_chunk_of_tokens(
    detach_gate: bool,
) -> None:
    case = cases.make(13, rows=2, chosen=60, rejected=60, vocab=500, dim=6, ignore=0.0, bias=True)
    with Largest() as largest:
        fused(case, chunk_tokens=8, detach_gate=detach_gate, generator=None).loss.sum().backward()
    assert largest.numbers <= 8 * 500
    with Largest() as whole:
        plain(case).loss.sum().backward()
    assert whole.numbers == 120 * 500


def products(case: Case, **options: Any) -> float:
    """Multiplications of one forward and backward, in units of (all tokens x vocabulary x D)."""
    with Largest() as count:
        fused(case, generator=None, **options).loss.sum().backward()
    tokens = case.chosen[..., 0].numel() + case.rejected[..., 0].numel()
    return count.products / (tokens * case.weight.numel())


@pytest.mark.parametrize(
    ("keeping", "soft", "detached"),
    [("none", 3.75, 2.25), ("free", 3.25, 2.0), ("all", 3.0, 2.0)],
    indirect=["keeping"],
)
def test_the_work_is_what_the_documentation_says(keeping: str, soft: float, detached: float) -> None:
    case = cases.make(14, rows=1, chosen=64, rejected=64, vocab=300, dim=5, ignore=0.0)
    # A quarter of the tokens is one chunk, and the last one visited is not computed again.
    assert products(case, chunk_tokens=32) == pytest.approx(soft)
    # The rejected half needs its logits, and of the head's gradient two rows per token.
    assert products(case, chunk_tokens=32, detach_gate=True) == pytest.approx(detached)
    assert products(case, chunk_tokens=32, gate_kind="off") == pytest.approx(detached)


@pytest.mark.usefixtures("keeping")
def test_a_micro_batch_of_one_chunk_is_never_computed_twice() -> None:
    case = cases.make(14, rows=2, ignore=0.0)
    assert products(case) == pytest.approx(3)


def test_a_frozen_head_needs_no_second_pass() -> None:
    case = cases.make(15, rows=2, ignore=0.0)
    case.weight.requires_grad_(False)
    assert products(case) == pytest.approx(2.0)


def test_ignored_tokens_cost_nothing() -> None:
    case = cases.make(16, rows=2, chosen=8, rejected=8, ignore=0.0)
    case.chosen_labels[:, 4:] = losses.IGNORE
    case.rejected_labels[:, 4:] = losses.IGNORE
    assert products(case) == pytest.approx(3 / 2)


def test_without_gradients_it_costs_one_product_and_gives_the_same_numbers() -> None:
    case = cases.make(17, ignore=0.0)
    with torch.no_grad():
        quiet = fused(case)
        assert not quiet.loss.requires_grad
        with Largest() as count:
            fused(case)
    torch.testing.assert_close(quiet.loss, fused(case).loss)
    assert count.products == (18 + 15) * case.weight.numel()


def test_a_vocabulary_of_150k_with_a_micro_batch_of_one_pair() -> None:
    case = cases.make(
        18,
        rows=1,
        chosen=4,
        rejected=4,
        vocab=150_001,
        dim=3,
        ignore=0.0,
        dtype=torch.float32,
        bias=True,
    )
    options: dict[str, Any] = {"k": 5, "generator": torch.Generator().manual_seed(0)}
    one = fused(case, **options)
    options["generator"].manual_seed(0)
    other = plain(case, **options)
    assert torch.equal(one.contrast, other.contrast)
    torch.testing.assert_close(one.loss, other.loss)
    assert_same(
        gradients(one.loss.sum(), case.leaves),
        gradients(other.loss.sum(), case.leaves),
        rtol=1e-4,
        atol=1e-5,
    )
