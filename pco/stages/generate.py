"""Stage `generate`: the policy completes every training prompt n times; vLLM does the work, shard by shard."""

from data import store
from pco.models.engine import Sampler
from pco.models.rendering import load_tokenizer
from pco.models.sampling import sampled
from pco.runs import policy
from pco.stage import Stage
from pco.stages.completions import complete_shards, read_prompts


def run(stage: Stage) -> store.Manifest:
    """Write the `candidates` table: n samples of each training prompt under the stage's policy."""
    started = stage.launched()
    config = stage.config
    current = policy.verified(stage)
    tokenizer = load_tokenizer(current.folder)
    prompts, n, size = read_prompts(stage, "train"), config.generate.n, config.generate.shard_size
    shards = []
    for start in range(0, len(prompts), size):
        requests = [sampled(row, tokenizer, config, stage.round, n) for row in prompts[start : start + size]]
        shards.append(sum(requests, []))
    metrics = complete_shards(stage, shards, lambda: Sampler(current.folder, config.engine))
    rows = len(prompts) * n
    return stage.finish(unit="completions", rows_in=rows, rows_out=rows, dropped={}, started=started, metrics=metrics)
