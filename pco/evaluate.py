"""Stage `evaluate`: a policy meets the held-out prompts and the human texts that no training ever sees."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from data import schemas, store
from pco import generate, measures, policy, rewards
from pco.engine import Request, Sampler
from pco.rendering import load_tokenizer, render
from pco.stage import Stage

_GREEDY_SAMPLE = 0


def run(stage: Stage) -> store.Manifest:
    """Write the held-out `candidates` and the `evaluations` table.

    The inputs `start` and `previous` (evaluations of other policies) add the win rates against those policies.
    """
    started = stage.launched()
    current = policy.verified(stage)

    @cache
    def engine() -> Sampler:
        return Sampler(current.folder, stage.config.engine)

    shards = _shards(stage, load_tokenizer(current.folder))
    metrics = generate.complete_shards(stage, shards, engine)
    candidates = store.read_parts(stage.folder, "candidates", stage.fingerprint).to_pylist()
    if not store.has_part(stage.folder, "evaluations", 0, stage.fingerprint):
        rows = _measured(stage, candidates, engine)
        store.write_part(stage.folder, "evaluations", 0, schemas.build("evaluations", rows), stage.fingerprint)
    rows = store.read_parts(stage.folder, "evaluations", stage.fingerprint).to_pylist()
    return stage.finish(
        unit="held-out completions",
        rows_in=sum(map(len, shards)),
        rows_out=len(candidates),
        dropped={},
        started=started,
        metrics={**metrics, **measures.summarise(rows)},
    )


def _measured(stage: Stage, candidates: list[measures.Row], engine: Callable[[], Sampler]) -> list[measures.Row]:
    rows = measures.completion_rows(candidates, rewards.load(stage.config.reward).score(candidates))
    for name in ("start", "previous"):
        if name in stage.inputs:
            rows += measures.win_rows(f"win_vs_{name}", rows, read(stage.inputs[name].folder))
    rows += measures.corpus_rows(candidates)
    texts = generate.read_prompts(stage, "text")
    logprobs = engine().text_logprobs([row["prompt"] for row in texts])
    rows += measures.text_rows([row["prompt_id"] for row in texts], logprobs)
    return [{**row, "policy": stage.inputs["policy"].fingerprint} for row in rows]


def read(folder: Path) -> list[measures.Row]:
    """The rows of a finished evaluation."""
    rows: list[measures.Row] = store.read_table(folder, "evaluations").to_pylist()
    return rows


def _shards(stage: Stage, tokenizer: Any) -> list[list[Request]]:
    """One greedy and `samples` sampled completions per held-out prompt, in shards of `shard_size` prompts.

    The seeds do not depend on the round, so that two policies differ by their weights and not by their luck.
    """
    config = stage.config
    requests: list[list[Request]] = []
    for row in generate.read_prompts(stage, "heldout"):
        greedy = Request(
            row["prompt_id"], _GREEDY_SAMPLE, render(tokenizer, row["prompt"], config.policy), 0, greedy=True
        )
        requests.append([greedy, *generate.sampled(row, tokenizer, config, "heldout", config.evaluate.samples)])
    size = config.generate.shard_size
    return [sum(requests[start : start + size], []) for start in range(0, len(requests), size)]
