"""What `generate` and `evaluate` share: prompts of the run, and shards of completions that the engine writes."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from data import schemas, store
from pco import progress
from pco.models.engine import Completion, Request, Sampler
from pco.models.sampling import candidate_row
from pco.progress import Progress
from pco.stage import Stage


def read_prompts(stage: Stage, split: str) -> list[dict[str, Any]]:
    """The rows of one split of the run's frozen prompts."""
    table = store.read_table(stage.inputs["prompts"].folder, "prompts")
    return [row for row in table.to_pylist() if row["split"] == split]


def complete_shards(
    stage: Stage, shards: Sequence[Sequence[Request]], start_engine: Callable[[], Sampler]
) -> dict[str, float]:
    """Complete and commit those shards that are not on disk yet; the engine starts only if there are any.

    Returns what this process did: seconds to start the engine, seconds of sampling, tokens and tokens per second.
    """
    missing = [i for i in range(len(shards)) if not store.has_part(stage.folder, "candidates", i, stage.fingerprint)]
    total = sum(map(len, shards))
    done = total - sum(len(shards[i]) for i in missing)
    if not missing:
        return {}
    began = time.monotonic()
    engine = start_engine()
    ready = time.monotonic()
    progress.report(Progress(done, total, "completions"))  # what is kept, before the first comes
    tokens = 0

    def on_done(count: int) -> None:
        nonlocal done
        done += count
        progress.report(Progress(done, total, "completions"))

    for i in missing:
        completions = engine.complete(list(shards[i]), stage.config.generate, on_done=on_done)
        tokens += sum(len(completion.token_ids) for completion in completions)
        content = _table(completions, stage.inputs["policy"].fingerprint)
        store.write_part(stage.folder, "candidates", i, content, stage.fingerprint, of=len(shards))
    seconds = time.monotonic() - ready
    return {
        "engine_start_s": ready - began,
        "sampling_s": seconds,
        "tokens": tokens,
        "tokens_per_s": tokens / seconds,
    }


def _table(completions: Sequence[Completion], policy_digest: str) -> pa.Table:
    return schemas.build("candidates", [candidate_row(completion, policy_digest) for completion in completions])
