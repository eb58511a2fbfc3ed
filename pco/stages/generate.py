"""Stage `generate`: the policy completes every training prompt n times with vLLM, shard by shard."""

from itertools import chain

from data import store
from pco.models.engine import Sampler
from pco.models.rendering import load_tokenizer
from pco.models.sampling import sampled
from pco.runs import policy
from pco.stage import Stage
from pco.stages.completions import complete_shards, in_shards, read_prompts


def run(stage: Stage) -> store.Manifest:
    """Write the `candidates` table: n samples of each training prompt under the stage's policy."""
    started = stage.launched()
    config = stage.config
    current = policy.verified(stage)
    tokenizer = load_tokenizer(current.folder)
    prompts, n, size = read_prompts(stage, "train"), config.generate.n, config.generate.shard_size
    requests = list(chain.from_iterable(sampled(row, tokenizer, config, stage.round, n) for row in prompts))
    shards = in_shards(requests, size * n)
    metrics = complete_shards(stage, shards, lambda: Sampler(current.folder, config.engine))
    rows = len(requests)
    return stage.finish(unit="completions", rows_in=rows, rows_out=rows, dropped={}, started=started, metrics=metrics)
