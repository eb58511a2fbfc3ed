"""What `generate` and `evaluate` share: the run's prompts, and completions in shards."""

import time
from collections.abc import Callable, Sequence
from functools import cache

from data import schemas, store
from data.rows import PromptRow
from pco.models.engine import Request, Sampler
from pco.models.sampling import candidate_row
from pco.sharding import OnDone, Shard, Span
from pco.stage import Stage


def read_prompts(stage: Stage, split: str) -> list[PromptRow]:
    """The rows of one split of the run's frozen prompts."""
    table = store.read_table(stage.inputs["prompts"].folder, "prompts")
    return [row for row in table.to_pylist() if row["split"] == split]


def in_shards(requests: Sequence[Request], size: int) -> list[Sequence[Request]]:
    """The requests in order, `size` of them in each shard; the last shard may have fewer."""
    return [requests[start : start + size] for start in range(0, len(requests), size)]


def complete_shards(
    stage: Stage, shards: Sequence[Sequence[Request]], start_engine: Callable[[], Sampler]
) -> dict[str, float]:
    """Complete and commit the shards that are not on disk yet. An engine starts only where one is made.

    Returns metrics of this attempt: seconds to start the engine (the slowest of several), seconds of sampling, tokens
    and tokens per second; none where nothing was left to do.
    """
    start_s, span, tokens, completed = 0.0, Span(), 0, 0

    @cache
    def engine() -> Sampler:
        nonlocal start_s
        began = time.monotonic()
        started = start_engine()
        start_s = time.monotonic() - began
        return started

    def make(index: int, on_done: OnDone) -> Shard:
        sampler = engine()
        on_done(0)  # the rate of progress counts from here
        began = time.monotonic()
        expected = tokens / completed if completed else _expected_tokens(stage)
        completions = sampler.complete(
            list(shards[index]), stage.config.generate, expected_tokens=expected, on_done=on_done
        )
        sampled = sum(len(completion.token_ids) for completion in completions)
        rows = [candidate_row(completion, stage.inputs["policy"].fingerprint) for completion in completions]
        seconds = time.monotonic() - began
        measured = {"engine_start_s": start_s, "sampling_s": seconds, "tokens": sampled}
        return Shard(schemas.build("candidates", rows), measured=measured)

    for done in stage.shards("candidates", list(map(len, shards)), make, unit="completions"):
        if done.measured:
            span.ended(done.measured["sampling_s"])
            tokens += int(done.measured["tokens"])
            completed += len(shards[done.index])
            start_s = max(start_s, done.measured["engine_start_s"])
    if not span.seconds:
        return {}
    return {
        "engine_start_s": start_s,
        "sampling_s": span.seconds,
        "tokens": tokens,
        "tokens_per_s": tokens / span.seconds,
    }


def _expected_tokens(stage: Stage) -> float:
    """Tokens of a completion, by the evaluations of earlier rounds; without one, the most that it may have."""
    for number in reversed(range(stage.round)):
        evaluation = store.read_manifest(Stage("evaluate", number, stage.config).folder)
        if evaluation is not None and "length" in evaluation.metrics:
            return max(1.0, evaluation.metrics["length"])
    return float(stage.config.generate.max_tokens)
