"""What `generate` and `evaluate` share: the run's prompts, and completions in shards."""

import time
from collections.abc import Callable, Sequence

from data import schemas, store
from data.rows import PromptRow
from pco import progress
from pco.models.engine import Request, Sampler
from pco.models.sampling import candidate_row
from pco.progress import Progress
from pco.stage import Shard, Stage


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
    """Complete and commit the shards that are not on disk yet. The engine starts only if there are any.

    Returns metrics of this process: seconds to start the engine, seconds of sampling, tokens and tokens per second.
    """
    missing = [index for index in range(len(shards)) if not stage.is_made("candidates", index)]
    if not missing:
        return {}
    total = sum(map(len, shards))
    done = total - sum(len(shards[index]) for index in missing)
    began = time.monotonic()
    engine = start_engine()
    ready = time.monotonic()
    progress.report(Progress(done, total, "completions"))  # what is on disk already
    tokens = 0

    def on_done(count: int) -> None:
        nonlocal done
        done += count
        progress.report(Progress(done, total, "completions"))

    def make(index: int) -> Shard:
        nonlocal tokens
        completions = engine.complete(list(shards[index]), stage.config.generate, on_done=on_done)
        tokens += sum(len(completion.token_ids) for completion in completions)
        rows = [candidate_row(completion, stage.inputs["policy"].fingerprint) for completion in completions]
        return Shard(schemas.build("candidates", rows))

    for _ in stage.shards("candidates", len(shards), make):
        pass  # the engine reports the progress, request by request
    seconds = time.monotonic() - ready
    return {
        "engine_start_s": ready - began,
        "sampling_s": seconds,
        "tokens": tokens,
        "tokens_per_s": tokens / seconds,
    }
