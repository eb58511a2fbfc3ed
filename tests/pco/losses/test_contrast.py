"""Sampling of the contrast token."""

from typing import Any

import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from pco.losses import IGNORE, contrast, sample_contrast

K = 4


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws(scores: Tensor, negative: int, count: int, k: int = K, seed: int = 0) -> Tensor:
    logits = scores.expand(1, count, -1)
    return sample_contrast(logits, torch.full((1, count), negative), k=k, generator=seeded(seed))[0]


SCORES = torch.tensor([0.3, 2.0, -1.0, 1.5, 0.9, 1.9, -3.0, 1.2])  # ids by score: 1 5 3 7 4 0 2 6


@pytest.mark.parametrize(
    ("negative", "expected"),
    [(1, {5, 3, 7, 4}), (7, {1, 5, 3, 4}), (4, {1, 5, 3, 7}), (0, {1, 5, 3, 7}), (6, {1, 5, 3, 7})],
    ids=["largest", "inside", "k+1-th", "just outside", "smallest"],
)
def test_exactly_k_candidates_remain_wherever_the_negative_token_ranks(negative: int, expected: set[int]) -> None:
    assert set(draws(SCORES, negative, 2000).tolist()) == expected


@pytest.mark.parametrize("negative", [1, 7, 4, 0])
def test_frequencies_follow_the_softmax_over_the_candidates(negative: int) -> None:
    count = 20_000
    found = torch.bincount(draws(SCORES, negative, count, seed=7), minlength=len(SCORES))
    chances = oracle.candidates(SCORES.double().numpy(), negative, K)
    observed = [int(found[token]) for token in chances]
    assert sum(observed) == count
    expected = [count * chance for chance in chances.values()]
    assert stats.chisquare(observed, expected).pvalue > 0.01


def test_with_k_plus_1_the_vocabulary_every_other_token_is_a_candidate() -> None:
    flat = torch.zeros(5)
    assert set(draws(flat, 2, 500, k=4).tolist()) == {0, 1, 3, 4}


def test_k_of_one_takes_the_best_other_token() -> None:
    assert set(draws(SCORES, 1, 50, k=1).tolist()) == {5}
    assert set(draws(SCORES, 5, 50, k=1).tolist()) == {1}


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    scores = torch.tensor([0.0, 1.0, -torch.inf, -torch.inf, -torch.inf])
    assert set(draws(scores, 1, 3000, k=4).tolist()) == {0}


def test_the_largest_and_smallest_uniform_numbers_stay_among_the_candidates() -> None:
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    found = contrast.pick_contrast(SCORES.expand(2, -1), torch.tensor([1, 1]), ends, K)
    assert found.tolist() == [3, 7]  # the first and last candidate in the order of ids


def test_nearly_equal_scores_that_change_places_by_rounding_leave_the_draw_alone() -> None:
    swapped = SCORES.clone()
    swapped[1] = SCORES[5] - 1e-7
    close = SCORES.clone()
    close[1] = SCORES[5] + 1e-7
    assert torch.equal(draws(close, 6, 2000), draws(swapped, 6, 2000))


def batch(rows: int = 6, length: int = 9, vocab: int = 13) -> tuple[Tensor, Tensor]:
    rng = seeded(3)
    logits = torch.randn(rows, length, vocab, generator=rng)
    negatives = torch.randint(vocab, (rows, length), generator=rng)
    for row in range(rows):
        negatives[row, length - row :] = IGNORE
    return logits, negatives


def test_the_same_generator_gives_the_same_ids_and_another_seed_others() -> None:
    logits, negatives = batch()
    one, two, other = (sample_contrast(logits, negatives, k=K, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_no_generator_means_torchs_default_one() -> None:
    logits, negatives = batch()
    torch.manual_seed(5)
    one = sample_contrast(logits, negatives, k=K)
    torch.manual_seed(5)
    assert torch.equal(one, sample_contrast(logits, negatives, k=K))


@given(st.integers(1, 6), st.booleans())
def test_the_split_into_micro_batches_changes_no_id(size: int, per_row: bool) -> None:
    logits, negatives = batch()

    def generators() -> Any:
        return [seeded(row) for row in range(len(logits))] if per_row else seeded(8)

    whole = sample_contrast(logits, negatives, k=K, generator=generators())
    shared = generators()
    parts = [
        sample_contrast(
            logits[start : start + size],
            negatives[start : start + size],
            k=K,
            generator=shared[start : start + size] if per_row else shared,
        )
        for start in range(0, len(logits), size)
    ]
    assert torch.equal(whole, torch.cat(parts))


def test_with_one_generator_per_row_the_order_of_the_rows_changes_no_id() -> None:
    logits, negatives = batch()
    order = [3, 0, 5, 1, 4, 2]
    forward = sample_contrast(logits, negatives, k=K, generator=[seeded(row) for row in range(6)])
    shuffled = sample_contrast(logits[order], negatives[order], k=K, generator=[seeded(row) for row in order])
    assert torch.equal(forward[order], shuffled)


@given(st.integers(0, 4), st.integers(0, 4))
def test_padding_on_either_side_changes_no_id(before: int, after: int) -> None:
    logits, negatives = batch()
    padded_logits = torch.nn.functional.pad(logits, (0, 0, before, after), value=torch.nan)
    padded = torch.nn.functional.pad(negatives, (before, after), value=IGNORE)
    found = sample_contrast(padded_logits, padded, k=K, generator=seeded())
    inner = found[:, before : before + negatives.shape[1]]
    assert torch.equal(inner, sample_contrast(logits, negatives, k=K, generator=seeded()))
    assert (found[padded == IGNORE] == IGNORE).all()


def test_the_dtype_of_the_logits_changes_only_what_rounding_changes() -> None:
    logits, negatives = batch()
    exact = (logits * 4).round() / 4  # numbers that bfloat16 holds
    found = [
        sample_contrast(exact.to(dtype), negatives, k=12, generator=seeded())
        for dtype in (torch.bfloat16, torch.float32, torch.float64)
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[1], found[2])


def test_sampling_leaves_no_trace_in_the_graph() -> None:
    logits, negatives = batch()
    found = sample_contrast(logits.requires_grad_(), negatives, k=K, generator=seeded())
    assert found.dtype == torch.int64
    assert not found.requires_grad


@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1000, 9000), st.booleans())
def test_the_search_by_blocks_finds_what_topk_finds(seed: int, count: int, vocab: int, descending: bool) -> None:
    scores = torch.randn(3, vocab, generator=seeded(seed))
    if descending:  # all of the largest in one block
        scores = scores.sort(descending=True).values
    expected = scores.topk(count)
    values, ids = contrast.largest(scores, count)
    assert torch.equal(values, expected.values)
    assert torch.equal(ids, expected.indices)


def test_the_search_by_blocks_is_used_at_a_vocabulary_of_150k_and_sees_its_last_tokens() -> None:
    scores = torch.zeros(2, 150_001)
    scores[0, [0, 127, 128, 149_999, 150_000]] = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])
    scores[1, [150_000, 149_999, 149_888, 149_887, 3]] = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])
    ids = contrast.largest(scores, 5)[1].tolist()
    assert ids == [[0, 127, 128, 149_999, 150_000], [150_000, 149_999, 149_888, 149_887, 3]]
