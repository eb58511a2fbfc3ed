"""However an epoch is cut into steps, ranks and micro-batches, it is the same pairs, labels and random numbers."""

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pco.losses import IGNORE
from pco.training.batches import Batch, Example, Rated, Step, collate, examples_of, micro_batches, rated_of, steps
from tests import builders

PAD = 0
tokens = st.lists(st.integers(1, 9), max_size=4)
prompts = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@st.composite
def example_lists(draw: st.DrawFn) -> list[Example]:
    reference = st.tuples(st.floats(-9, 0), st.floats(-9, 0))
    return [
        Example(f"pair {i}", draw(prompts), draw(tokens), draw(tokens), draw(reference))
        for i in range(draw(st.integers(1, 12)))
    ]


@st.composite
def rated_lists(draw: st.DrawFn) -> list[Rated]:
    return [
        Rated(f"rated {i}", draw(prompts), draw(tokens), draw(st.booleans())) for i in range(draw(st.integers(0, 9)))
    ]


worlds = st.integers(1, 4)
sizes = st.integers(1, 5)


# Steps.


@given(examples=example_lists(), feedback=rated_lists(), per_step=sizes, epochs=st.integers(1, 3))
def test_every_epoch_visits_every_pair_and_every_piece_of_feedback_exactly_once(
    examples: list[Example], feedback: list[Rated], per_step: int, epochs: int
) -> None:
    plan = list(steps(examples, feedback, pairs_per_step=per_step, epochs=epochs, seed=0))
    for epoch in range(epochs):
        own = [step for step in plan if step.epoch == epoch]
        assert Counter(e.pair_id for step in own for e in step.examples) == Counter(e.pair_id for e in examples)
        assert Counter(r.rated_id for step in own for r in step.feedback) == Counter(r.rated_id for r in feedback)


@given(examples=example_lists(), per_step=sizes, epochs=st.integers(1, 3))
def test_only_the_last_step_of_an_epoch_may_be_smaller_and_it_is_kept(
    examples: list[Example], per_step: int, epochs: int
) -> None:
    plan = list(steps(examples, pairs_per_step=per_step, epochs=epochs, seed=0))
    assert [step.number for step in plan] == list(range(len(plan)))
    whole, rest = divmod(len(examples), per_step)
    of_one_epoch = [per_step] * whole + [rest] * bool(rest)
    assert [len(step.examples) for step in plan] == of_one_epoch * epochs


@given(examples=example_lists(), feedback=rated_lists(), per_step=sizes)
def test_feedback_is_spread_evenly_over_the_steps(
    examples: list[Example], feedback: list[Rated], per_step: int
) -> None:
    plan = list(steps(examples, feedback, pairs_per_step=per_step, epochs=1, seed=0))
    counts = [len(step.feedback) for step in plan]
    assert max(counts) - min(counts) <= 1


@given(examples=example_lists(), seed=st.integers(0, 9))
def test_the_order_follows_from_seed_and_epoch_alone(examples: list[Example], seed: int) -> None:
    def order(per_step: int, epochs: int) -> list[str]:
        plan = steps(examples, pairs_per_step=per_step, epochs=epochs, seed=seed)
        return [example.pair_id for step in plan for example in step.examples]

    assert order(1, 3) == order(5, 3)
    assert order(1, 3)[: len(examples)] == order(1, 1)


def test_epochs_and_seeds_have_different_orders() -> None:
    examples = [Example(str(i), [1], [2], [3]) for i in range(50)]
    orders = [
        tuple(e.pair_id for e in step.examples)
        for seed in (0, 1)
        for step in steps(examples, pairs_per_step=50, epochs=3, seed=seed)
    ]
    assert len(set(orders)) == 6


# Micro-batches.


def contents(batch: Batch) -> list[Any]:
    """What counts in a micro-batch, pair by pair and completion by completion: tokens, labels, random numbers."""
    numbers = [torch.rand(4, generator=generator).tolist() for generator in batch.generators]
    sequences = [sequence(batch, row) for row in range(len(batch.labels))]
    chosen, rated, rejected = (sequences[rows] for rows in (batch.chosen, batch.rated, batch.rejected))
    pairs = list(zip(chosen, rejected, numbers[batch.chosen], batch.reference.T.tolist(), strict=True))
    feedback = list(zip(rated, batch.good.tolist(), numbers[batch.rated], strict=True))
    return pairs[: batch.pairs] + feedback


def sequence(batch: Batch, row: int) -> tuple[list[int], list[int]]:
    """The tokens of a row without padding, and its labels as far as they count."""
    read = batch.attention_mask[row].bool()
    assert torch.equal(read, torch.arange(len(read)) < read.sum())
    assert (batch.input_ids[row][~read] == PAD).all()
    assert (batch.labels[row][~read] == IGNORE).all()
    return batch.input_ids[row][read].tolist(), batch.labels[row][read].tolist()


def of_all_ranks(step: Step, world: int, size: int) -> list[list[Batch]]:
    return [list(micro_batches(step, rank=rank, world=world, size=size, pad=PAD, seed=0)) for rank in range(world)]


@given(examples=example_lists(), feedback=rated_lists(), world=worlds, size=sizes)
def test_no_split_changes_what_a_step_consists_of(
    examples: list[Example], feedback: list[Rated], world: int, size: int
) -> None:
    step = Step(0, 0, examples, feedback)
    whole = contents(collate(examples, feedback, pad=PAD, seed="0:0"))
    parts = [item for batches in of_all_ranks(step, world, size) for batch in batches for item in contents(batch)]
    assert sorted(map(repr, parts)) == sorted(map(repr, whole))


@given(examples=example_lists(), feedback=rated_lists(), world=worlds, size=sizes)
def test_every_rank_gets_equally_many_micro_batches_none_larger_than_asked(
    examples: list[Example], feedback: list[Rated], world: int, size: int
) -> None:
    by_rank = of_all_ranks(Step(0, 0, examples, feedback), world, size)
    assert len({len(batches) for batches in by_rank}) == 1
    for batches in by_rank:
        for batch in batches:
            assert batch.pairs <= size
            assert len(batch.labels) <= max(2 * size, 2)


@given(examples=example_lists(), world=worlds, size=sizes)
def test_the_longest_pairs_come_first_and_those_of_similar_length_together(
    examples: list[Example], world: int, size: int
) -> None:
    for batches in of_all_ranks(Step(0, 0, examples, []), world, size):
        lengths = [batch.attention_mask.sum(-1) for batch in batches if batch.pairs]
        longest = [torch.maximum(rows[: len(rows) // 2], rows[len(rows) // 2 :]) for rows in lengths]
        of_pairs = [int(length) for rows in longest for length in rows]
        assert of_pairs == sorted(of_pairs, reverse=True)


@given(examples=example_lists(), world=worlds, size=sizes)
def test_what_fills_up_a_rank_counts_for_nothing(examples: list[Example], world: int, size: int) -> None:
    for batches in of_all_ranks(Step(0, 0, examples, []), world, size):
        for batch in batches:
            assert (batch.pairs == 0) == (len(contents(batch)) == 0)
            if batch.pairs == 0:
                assert (batch.labels == IGNORE).all()
                assert batch.attention_mask.any()


@given(examples=example_lists(), feedback=rated_lists())
def test_every_label_is_the_token_after_it_and_labels_are_the_completions(
    examples: list[Example], feedback: list[Rated]
) -> None:
    batch = collate(examples, feedback, pad=PAD, seed=0)
    expected = [e.chosen for e in examples] + [r.completion for r in feedback] + [e.rejected for e in examples]
    prompts_of = [e.prompt for e in examples] + [r.prompt for r in feedback] + [e.prompt for e in examples]
    for row, (prompt, completion) in enumerate(zip(prompts_of, expected, strict=True)):
        ids, labels = sequence(batch, row)
        assert ids == prompt + completion
        assert [label for label in labels if label != IGNORE] == completion
        for position, label in enumerate(labels):
            assert label == IGNORE or label == ids[position + 1]


@given(examples=example_lists(), feedback=rated_lists())
def test_chosen_feedback_and_rejected_rows_share_out_the_batch(examples: list[Example], feedback: list[Rated]) -> None:
    batch = collate(examples, feedback, pad=PAD, seed=0)
    rows = torch.arange(len(batch.labels))
    assert torch.equal(torch.cat([rows[part] for part in (batch.chosen, batch.rated, batch.rejected)]), rows)
    assert batch.good.tolist() == [rated.good for rated in feedback]
    assert batch.reference.T.tolist() == [list(example.reference or ()) for example in examples]


def test_random_numbers_differ_from_pair_to_pair_and_from_epoch_to_epoch() -> None:
    examples = [Example(str(i), [1], [2], [3]) for i in range(3)]
    drawn = set()
    for step in steps(examples, pairs_per_step=3, epochs=2, seed=0):
        for batch in micro_batches(step, rank=0, world=1, size=3, pad=PAD, seed=0):
            drawn |= {float(torch.rand(1, generator=generator)) for generator in batch.generators}
    assert len(drawn) == 6


# Rows of tables.


def test_pairs_become_examples_with_the_log_probabilities_of_their_own_rows(tokenizer: Any) -> None:
    rows = builders.pair_rows(tokenizer, 3)
    reference = [
        {**row, "chosen_logp": -float(i), "rejected_logp": -10.0 * i} for i, row in reversed(list(enumerate(rows)))
    ]
    examples = examples_of(rows, reference)
    assert [example.reference for example in examples] == [(0.0, 0.0), (-1.0, -10.0), (-2.0, -20.0)]
    assert [example.reference for example in examples_of(rows)] == [None] * 3
    for row, example in zip(rows, examples, strict=True):
        assert example.prompt == row["prompt_token_ids"]
        assert (example.chosen, example.rejected) == (row["chosen_token_ids"], row["rejected_token_ids"])
        assert example.longest == max(len(example.prompt + example.chosen), len(example.prompt + example.rejected))


def test_a_pair_that_the_reference_does_not_know_is_an_error(tokenizer: Any) -> None:
    rows = builders.pair_rows(tokenizer, 2)
    with pytest.raises(KeyError, match=rows[1]["prompt_id"]):
        examples_of(rows, [{**rows[0], "chosen_logp": 0.0, "rejected_logp": 0.0}])


def test_two_ratings_of_one_prompt_have_random_numbers_of_their_own() -> None:
    row = {"prompt_id": "p", "prompt_token_ids": [1], "token_ids": [2], "good": True}
    first, second = rated_of([row, {**row, "good": False}])
    assert first.rated_id != second.rated_id
    assert (first.good, second.good) == (True, False)
    assert first.longest == 2
