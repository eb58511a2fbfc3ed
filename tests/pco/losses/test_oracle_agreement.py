"""`pco.losses` against the oracle: values to rounding, gradients to finite differences."""

from typing import Any

import numpy as np
import oracle
import torch
from cases import Case, cases, gradients, keywords
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pco import losses

EXACT = {"rtol": 1e-10, "atol": 1e-10}
NUMERIC = {"rtol": 1e-5, "atol": 1e-6}


def numpy_pair(case: Case, row: int) -> tuple[Any, ...]:
    return tuple(tensor[row].detach().numpy().copy() for tensor in (*case.logits, case.contrast))


def oracle_pairs(case: Case, knobs: dict[str, Any]) -> list[oracle.Pair]:
    return [oracle.pairwise(*numpy_pair(case, row), **oracle_knobs(knobs)) for row in range(len(case.chosen))]


def oracle_knobs(knobs: dict[str, Any]) -> dict[str, Any]:
    return {
        "alpha": knobs["alpha"],
        "b": knobs["b"],
        "tau": knobs["tau"],
        "kind": knobs["gate_kind"],
        "normalized": knobs["length_normalized_margin"],
    }


def assert_fields(result: losses.PairwiseCringe, expected: list[oracle.Pair]) -> None:
    for name in ("loss", "gate", "margin", "ce", "cringe"):
        values = [getattr(pair, name) for pair in expected]
        np.testing.assert_allclose(getattr(result, name).detach(), values, **EXACT, err_msg=name)


@given(cases, keywords)
def test_every_field_of_the_plain_form_equals_the_oracle(case: Case, knobs: dict[str, Any]) -> None:
    result = losses.pairwise_cringe(*case.logits, k=1, contrast=case.contrast, **knobs)
    assert_fields(result, oracle_pairs(case, knobs))


@given(cases, keywords, st.integers(1, 7))
def test_every_field_of_the_fused_form_equals_the_oracle(case: Case, knobs: dict[str, Any], chunk: int) -> None:
    result = losses.fused_pairwise_cringe(
        *case.hidden,
        case.weight,
        head_bias=case.bias,
        chunk_tokens=chunk,
        k=1,
        contrast=case.contrast,
        **knobs,
    )
    assert_fields(result, oracle_pairs(case, knobs))


@settings(max_examples=40)
@given(cases, keywords)
def test_the_gradient_with_respect_to_the_logits_equals_finite_differences(case: Case, knobs: dict[str, Any]) -> None:
    logits = [tensor.detach().requires_grad_() for tensor in (case.logits[0], case.logits[2])]
    result = losses.pairwise_cringe(
        logits[0],
        case.chosen_labels,
        logits[1],
        case.rejected_labels,
        k=1,
        contrast=case.contrast,
        **knobs,
    )
    # The hard gate has no slope where it jumps.
    assume(knobs["gate_kind"] != "hard" or float((result.margin.detach() - knobs["b"]).abs().min()) > 1e-3)
    found = gradients(result.loss.sum(), logits)
    for row in range(len(case.chosen)):
        arrays = numpy_pair(case, row)
        constant = oracle.pairwise(*arrays, **oracle_knobs(knobs)).gate if knobs["detach_gate"] else None

        def loss(arrays: Any = arrays, constant: float | None = constant) -> float:
            return oracle.pairwise(*arrays, **oracle_knobs(knobs), constant_gate=constant).loss

        np.testing.assert_allclose(found[0][row], oracle.slope(loss, arrays[0]), **NUMERIC)
        np.testing.assert_allclose(found[1][row], oracle.slope(loss, arrays[2]), **NUMERIC)


@given(cases, st.integers(0, 2**31), st.data())
def test_the_sampled_ids_are_the_oracles_for_the_same_uniform_numbers(
    case: Case, seed: int, data: st.DataObject
) -> None:
    logits, negatives = case.logits[2].detach(), case.rejected_labels
    k = data.draw(st.integers(1, logits.shape[-1] - 1))
    rng = torch.Generator().manual_seed(seed)
    found = losses.sample_contrast(logits, negatives, k=k, generator=rng)
    again = torch.Generator().manual_seed(seed)
    for row, position in np.ndindex(*negatives.shape):
        negative = int(negatives[row, position])
        if negative == oracle.IGNORED:
            assert found[row, position] == losses.IGNORE
            continue
        uniform = float(torch.rand(1, generator=again, dtype=torch.float64))
        assert found[row, position] == oracle.draw(logits[row, position].numpy(), negative, k, uniform)


@given(cases, st.floats(0, 3), st.integers(0, 7))
def test_binary_cringe_equals_the_oracle_in_both_forms(case: Case, alpha: float, bits: int) -> None:
    good = torch.tensor([bool(bits >> row & 1) for row in range(len(case.rejected))])
    logits, labels = case.logits[2], case.rejected_labels
    options: dict[str, Any] = {"alpha": alpha, "k": 1, "contrast": case.contrast}
    plain = losses.binary_cringe(logits, labels, good, **options)
    fused = losses.fused_binary_cringe(
        case.rejected, labels, good, case.weight, head_bias=case.bias, chunk_tokens=3, **options
    )
    arrays = logits.detach().numpy()
    for row, liked in enumerate(good.tolist()):
        ids, contrast = labels[row].numpy(), case.contrast[row].numpy()
        ce = -oracle.completion_logp(arrays[row], ids) if liked else 0.0
        term = 0.0 if liked else oracle.cringe_completion(arrays[row], ids, contrast)
        for result in (plain, fused):
            np.testing.assert_allclose(result.ce[row].detach(), ce, **EXACT)
            np.testing.assert_allclose(result.cringe[row].detach(), term, **EXACT)
            np.testing.assert_allclose(result.loss[row].detach(), ce + alpha * term, **EXACT)


@given(cases, st.floats(0, 3))
def test_unlikelihood_equals_the_oracle_in_both_forms(case: Case, alpha: float) -> None:
    plain = losses.unlikelihood(*case.logits, alpha=alpha)
    fused = losses.fused_unlikelihood(*case.hidden, case.weight, head_bias=case.bias, chunk_tokens=3, alpha=alpha)
    chosen, chosen_labels, rejected, rejected_labels = (tensor.detach().numpy() for tensor in case.logits)
    for row in range(len(chosen)):
        ce = -oracle.completion_logp(chosen[row], chosen_labels[row])
        term = oracle.unlikelihood_completion(rejected[row], rejected_labels[row])
        margin = -ce - oracle.completion_logp(rejected[row], rejected_labels[row])
        for result in (plain, fused):
            np.testing.assert_allclose(result.ce[row].detach(), ce, **EXACT)
            np.testing.assert_allclose(result.unlikelihood[row].detach(), term, **EXACT)
            np.testing.assert_allclose(result.loss[row].detach(), ce + alpha * term, **EXACT)
            np.testing.assert_allclose(result.margin[row].detach(), margin, **EXACT)


@given(cases)
def test_log_probabilities_and_sft_equal_the_oracle_in_both_forms(case: Case) -> None:
    logits, labels = case.logits[0], case.chosen_labels
    expected = [
        oracle.completion_logp(scores, ids) for scores, ids in zip(logits.detach().numpy(), labels.numpy(), strict=True)
    ]
    fused = losses.fused_logps(case.chosen, labels, case.weight, head_bias=case.bias, chunk_tokens=2)
    np.testing.assert_allclose(losses.completion_logps(logits, labels).detach(), expected, **EXACT)
    np.testing.assert_allclose(-losses.sft(logits, labels).detach(), expected, **EXACT)
    np.testing.assert_allclose(fused.detach(), expected, **EXACT)


numbers = st.floats(-2e4, 2e4)


@given(st.lists(st.tuples(numbers, numbers, numbers, numbers), max_size=4), st.floats(0.01, 2))
def test_dpo_and_ipo_equal_the_oracle(rows: list[tuple[float, ...]], beta: float) -> None:
    columns = torch.tensor(rows, dtype=torch.float64).reshape(-1, 4).unbind(1)
    for smoothing in (0.0, 0.2):
        expected = [oracle.dpo(*row, beta, smoothing) for row in rows]  # type: ignore[call-arg]
        found = losses.dpo(*columns, beta=beta, label_smoothing=smoothing)
        np.testing.assert_allclose(found, expected, **EXACT)
    expected = [oracle.ipo(*row, beta) for row in rows]  # type: ignore[call-arg]
    np.testing.assert_allclose(losses.ipo(*columns, beta=beta), expected, **EXACT)


@given(st.lists(st.tuples(numbers, numbers, numbers, numbers), max_size=4), st.floats(0.01, 5), st.data())
def test_losses_that_divide_by_lengths_equal_the_oracle(
    rows: list[tuple[float, ...]], beta: float, data: st.DataObject
) -> None:
    counts = data.draw(st.lists(st.tuples(*[st.integers(0, 300)] * 2), min_size=len(rows), max_size=len(rows)))
    gamma, smoothing = data.draw(st.floats(0, 3)), data.draw(st.sampled_from([0.0, 0.2]))
    # An empty completion has the log-probability 0.
    rows = [
        (pw * bool(chosen), pl * bool(rejected), rw * bool(chosen), rl * bool(rejected))
        for (pw, pl, rw, rl), (chosen, rejected) in zip(rows, counts, strict=True)
    ]
    columns = torch.tensor(rows, dtype=torch.float64).reshape(-1, 4).unbind(1)
    tokens = tuple(torch.tensor(counts, dtype=torch.int64).reshape(-1, 2).unbind(1))
    expected = [oracle.normalized_dpo(*row, count, beta, smoothing) for row, count in zip(rows, counts, strict=True)]
    result = losses.dpo(*columns, beta=beta, label_smoothing=smoothing, tokens=tokens)
    np.testing.assert_allclose(result, expected, **EXACT)
    expected = [oracle.normalized_ipo(*row, count, beta) for row, count in zip(rows, counts, strict=True)]
    np.testing.assert_allclose(losses.ipo(*columns, beta=beta, tokens=tokens), expected, **EXACT)
    expected = [oracle.simpo(*row[:2], count, beta, gamma, smoothing) for row, count in zip(rows, counts, strict=True)]
    result = losses.simpo(*columns[:2], tokens=tokens, beta=beta, gamma=gamma, label_smoothing=smoothing)
    np.testing.assert_allclose(result, expected, **EXACT)
