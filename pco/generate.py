"""Stage `generate`: the policy completes every training prompt n times; vLLM does the work, shard by shard."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from data import schemas, store
from pco import measures, policy, progress
from pco.config import RunConfig
from pco.engine import Completion, Request, Sampler
from pco.progress import Progress
from pco.rendering import load_tokenizer, render
from pco.seeds import seed_of
from pco.stage import Stage


def run(stage: Stage) -> store.Manifest:
    """Write the `candidates` table: n samples of each training prompt under the stage's policy."""
    started = stage.launched()
    config = stage.config
    current = policy.verified(stage)
    prompts = read_prompts(stage, "train")
    tokenizer = load_tokenizer(current.folder)
    requests = [
        request for row in prompts for request in sampled(row, tokenizer, config, stage.round, config.generate.n)
    ]
    shards = list(_shards(requests, config.generate.shard_size * config.generate.n))
    metrics = complete_shards(stage, shards, lambda: Sampler(current.folder, config.engine))
    return stage.finish(
        unit="completions",
        rows_in=len(requests),
        rows_out=len(requests),
        dropped={},
        started=started,
        metrics=metrics,
    )


def read_prompts(stage: Stage, split: str) -> list[dict[str, Any]]:
    """The rows of one split of the run's frozen prompts."""
    table = store.read_table(stage.inputs["prompts"].folder, "prompts")
    return [row for row in table.to_pylist() if row["split"] == split]


def sampled(row: dict[str, Any], tokenizer: Any, config: RunConfig, salt: object, n: int) -> list[Request]:
    """N sampled completions of a prompt, each with a seed of its own (one seed for all would give n equal ones)."""
    rendered = render(tokenizer, row["prompt"], config.policy)
    ids = row["prompt_id"]
    return [Request(ids, i, rendered, seed_of(config.seed, salt, ids, i)) for i in range(n)]


def _shards(requests: Sequence[Request], size: int) -> Iterator[Sequence[Request]]:
    for start in range(0, len(requests), size):
        yield requests[start : start + size]


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
    return schemas.build("candidates", [_row(completion, policy_digest) for completion in completions])


def _row(completion: Completion, policy_digest: str) -> dict[str, object]:
    request = completion.request
    return {
        "prompt_id": request.prompt_id,
        "mode": measures.GREEDY if request.greedy else measures.SAMPLED,
        "sample": request.sample,
        "prompt": request.prompt.text,
        "prompt_token_ids": request.prompt.token_ids,
        "completion": completion.text,
        "token_ids": completion.token_ids,
        "logprob": completion.logprob,
        "finish_reason": completion.finish_reason,
        "seed": request.seed,
        "policy": policy_digest,
    }
