"""Every bad argument is refused with a message that says what was wrong and what to do."""

from typing import Any

import cases
import pytest
import torch
from cases import PLAIN

from pco import losses

CASE = cases.make(0, rows=2, vocab=11, dim=4)
CHOSEN, CHOSEN_LABELS, REJECTED, REJECTED_LABELS = (
    tensor.detach() if tensor.requires_grad else tensor for tensor in CASE.logits
)
ONES = torch.ones(2)


def plain(**changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "chosen_logits": CHOSEN,
        "chosen_labels": CHOSEN_LABELS,
        "rejected_logits": REJECTED,
        "rejected_labels": REJECTED_LABELS,
        **PLAIN,
        **changes,
    }
    return losses.pairwise_cringe(**arguments)


def fused(**changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "chosen_hidden": CASE.chosen,
        "chosen_labels": CHOSEN_LABELS,
        "rejected_hidden": CASE.rejected,
        "rejected_labels": REJECTED_LABELS,
        "head_weight": CASE.weight,
        **PLAIN,
        **changes,
    }
    return losses.fused_pairwise_cringe(**arguments)


KNOBS = [
    ({"k": 0}, "k must be a whole number of at least 1, got 0"),
    ({"k": 2.0}, "k must be a whole number"),
    ({"k": 11}, "lower k to 10 or less"),
    ({"tau": 0.0}, "tau must be larger than 0, got 0.0"),
    ({"tau": float("nan")}, "tau must be a finite"),
    ({"b": float("inf")}, "b must be a finite"),
    ({"alpha": -0.1}, "alpha must be at least 0"),
    ({"alpha": torch.tensor(1.0)}, "alpha must be a finite Python number"),
    ({"gate_kind": "smooth"}, "gate kind must be .* got 'smooth'"),
    ({"chosen_labels": CHOSEN_LABELS[:, 1:]}, r"chosen_labels must have the shape \(2, 6\)"),
    ({"rejected_labels": REJECTED_LABELS[:1]}, r"rejected_labels must have the shape \(2, 5\)"),
    ({"rejected_labels": REJECTED_LABELS.float()}, r"rejected_labels must hold token ids"),
    (
        {"chosen_labels": torch.full_like(CHOSEN_LABELS, 11)},
        r"ids from 11 to 11, outside \[0, 11\)",
    ),
    ({"chosen_labels": torch.full_like(CHOSEN_LABELS, -1)}, "ids from -1 to -1"),
    ({"rejected_labels": torch.full_like(REJECTED_LABELS, -99)}, "only -100 marks"),
    ({"contrast": torch.full_like(REJECTED_LABELS, 11)}, "contrast holds ids from 11"),
    ({"contrast": torch.full_like(REJECTED_LABELS, -100)}, "contrast holds ids from -100"),
    ({"contrast": REJECTED_LABELS[:, 1:]}, r"contrast must have the shape \(2, 5\)"),
    ({"generator": [torch.Generator()]}, "got 1 generators for 2 rows"),
]


@pytest.mark.parametrize("form", [plain, fused])
@pytest.mark.parametrize(("changes", "message"), KNOBS)
def test_both_forms_refuse_the_same_arguments(form: Any, changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        form(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chosen_logits": CHOSEN[0]}, "chosen_logits must be a floating point tensor"),
        ({"rejected_logits": REJECTED.long()}, "rejected_logits must be a floating point"),
        ({"rejected_logits": REJECTED[..., 1:]}, "must agree in their first and last"),
        (
            {"chosen_logits": CHOSEN[:1], "chosen_labels": CHOSEN_LABELS[:1]},
            "row i of each is one pair",
        ),
    ],
)
def test_the_plain_form_refuses_logits_that_do_not_fit(changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plain(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"chosen_hidden": CASE.chosen[0]},
            r"chosen_hidden must be a floating point tensor of shape",
        ),
        ({"head_weight": CASE.weight.t()}, r"head_weight must have the shape \(V, D\) with D = 4"),
        ({"head_weight": torch.empty(0)}, "under ZeRO-3 call the loss inside the head's forward"),
        ({"head_bias": torch.zeros(4)}, r"head_bias must have the shape \(V,\) = \(11,\)"),
        ({"chunk_tokens": 0}, "chunk_tokens must be a whole number of at least 1, got 0"),
    ],
)
def test_the_fused_form_refuses_a_head_that_does_not_fit(changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fused(**changes)


def test_the_gate_refuses_a_column_that_would_broadcast() -> None:
    with pytest.raises(ValueError, match=r"got margin \(2, 1\): squeeze"):
        losses.gate(ONES[:, None], b=0, tau=1)


def test_cringe_refuses_ids_outside_the_vocabulary_and_foreign_shapes() -> None:
    with pytest.raises(ValueError, match="contrast holds ids from -100"):
        losses.cringe(CHOSEN, CHOSEN_LABELS.clamp(min=0), torch.full_like(CHOSEN_LABELS, -100))
    with pytest.raises(ValueError, match="contrast must have the shape"):
        losses.cringe(CHOSEN, CHOSEN_LABELS, CHOSEN_LABELS[:, :1])


def test_sample_contrast_refuses_k_as_large_as_the_vocabulary() -> None:
    with pytest.raises(ValueError, match="need a vocabulary of at least 12, but it has 11"):
        losses.sample_contrast(CHOSEN, CHOSEN_LABELS, k=11)


@pytest.mark.parametrize("function", [losses.dpo, losses.ipo])
@pytest.mark.parametrize("place", range(4))
def test_preference_losses_refuse_a_column_among_rows(function: Any, place: int) -> None:
    columns = [ONES, ONES, ONES, ONES]
    columns[place] = ONES[:, None]
    with pytest.raises(ValueError, match=r"\(2, 1\).* it would broadcast to \(B, B\)"):
        function(*columns, beta=0.1)


@pytest.mark.parametrize("function", [losses.dpo, losses.ipo])
@pytest.mark.parametrize("place", range(6))
def test_length_normalised_losses_refuse_a_column_among_rows(function: Any, place: int) -> None:
    columns = [ONES] * 6
    columns[place] = ONES[:, None]
    with pytest.raises(ValueError, match=r"\(2, 1\).* it would broadcast to \(B, B\)"):
        function(*columns[:4], beta=0.1, tokens=(columns[4], columns[5]))


@pytest.mark.parametrize("place", range(4))
def test_simpo_refuses_a_column_among_rows(place: int) -> None:
    columns = [ONES] * 4
    columns[place] = ONES[:, None]
    with pytest.raises(ValueError, match=r"\(2, 1\).* it would broadcast to \(B, B\)"):
        losses.simpo(*columns[:2], beta=2.0, gamma=0.5, tokens=(columns[2], columns[3]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0.0}, "beta must be larger than 0"),
        ({"gamma": -0.1}, "gamma must be at least 0"),
        ({"gamma": float("inf")}, "gamma must be a finite"),
        ({"label_smoothing": 0.5}, "label_smoothing must be below 0.5"),
    ],
)
def test_simpo_refuses_knobs_out_of_range(changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        losses.simpo(ONES, ONES, tokens=(ONES, ONES), **{"beta": 2.0, "gamma": 0.5, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0.0}, "beta must be larger than 0"),
        ({"label_smoothing": -0.1}, "label_smoothing must be at least 0"),
        ({"label_smoothing": 0.5}, "label_smoothing must be below 0.5"),
    ],
)
def test_dpo_refuses_knobs_out_of_range(changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        losses.dpo(ONES, ONES, ONES, ONES, **{"beta": 0.1, **changes})


@pytest.mark.parametrize("good", [torch.ones(2), torch.ones(3).bool(), torch.ones(2, 1).bool()])
def test_binary_cringe_refuses_anything_but_one_bool_per_completion(good: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="good must hold one bool per completion"):
        losses.binary_cringe(CHOSEN, CHOSEN_LABELS, good, alpha=1, k=2)
    with pytest.raises(ValueError, match="good must hold one bool per completion"):
        losses.fused_binary_cringe(CASE.chosen, CHOSEN_LABELS, good, CASE.weight, alpha=1, k=2)
