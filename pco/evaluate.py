"""Stage `evaluate`: a policy meets the held-out prompts and the human texts that no training ever sees."""

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

from data import schemas, store
from data.errors import BadInput
from pco import generate, measures, policy, rewards
from pco.engine import Request, Sampler, free_memory
from pco.rendering import load_tokenizer, render
from pco.rewards import Reward
from pco.stage import Stage

_GREEDY_SAMPLE = 0


def run(stage: Stage) -> store.Manifest:
    """Write the held-out `candidates` and the `evaluations` table.

    The inputs `start` and `previous` (evaluations of other policies) add the win rates against those policies.
    """
    started = stage.launched()
    current = policy.verified(stage)
    rewards.check_unchanged(stage)
    # Before the sampling: a fork takes over the prompts of another run, which were checked with that run's reward.
    rewards.check(stage.config.reward, {"the run's held-out prompts": generate.read_prompts(stage, "heldout")})

    @cache
    def engine() -> Sampler:
        return Sampler(current.folder, stage.config.engine)

    shards = _shards(stage, load_tokenizer(current.folder))
    metrics = generate.complete_shards(stage, shards, engine)
    candidates = store.read_parts(stage.folder, "candidates", stage.fingerprint).to_pylist()
    if not store.has_part(stage.folder, "evaluations", 0, stage.fingerprint):
        texts = generate.read_prompts(stage, "text")
        logprobs = list(engine().text_logprobs([row["prompt"] for row in texts]))
        engine.cache_clear()
        free_memory()  # for the reward model
        reward = rewards.load(stage.config.reward, stage.config.folder)
        rows = _measured(stage, candidates, reward) + measures.text_rows([row["prompt_id"] for row in texts], logprobs)
        marked = [{**row, "policy": current.fingerprint} for row in rows]
        table = schemas.build("evaluations", marked)
        store.write_part(stage.folder, "evaluations", 0, table, stage.fingerprint, counts=reward.counts)
    rows = store.read_parts(stage.folder, "evaluations", stage.fingerprint).to_pylist()
    unscored = len(candidates) - sum(row["measure"] == "reward" for row in rows)
    return stage.finish(
        unit="held-out completions",
        rows_in=sum(map(len, shards)),
        rows_out=len(candidates),
        dropped={},
        started=started,
        metrics={
            **metrics,
            **measures.summarise(rows),
            **({"without_reward": unscored} if unscored else {}),
            **rewards.metrics(store.counted(stage.folder, "evaluations", stage.fingerprint)),
        },
    )


def _measured(stage: Stage, candidates: list[measures.Row], reward: Reward) -> list[measures.Row]:
    rows = measures.completion_rows(candidates, _rewards(stage, candidates, reward))
    for name in ("start", "previous"):
        if name in stage.inputs:
            rows += measures.win_rows(f"win_vs_{name}", rows, read(stage.inputs[name].folder))
    return rows + measures.corpus_rows(candidates)


def _rewards(stage: Stage, candidates: list[measures.Row], reward: Reward) -> list[float]:
    """The reward of each completion; not finite where it got none.

    Raises BadInput when none got any: there would be no reward to compare.
    """
    scores = rewards.judge(reward, stage, candidates)
    if all(score.dropped for score in scores):
        raise BadInput(
            f"{stage.title}: none of {len(scores)} held-out completions got a reward "
            f"({dict(Counter(score.dropped for score in scores))}). See docs/rewards.md on what a reward cannot judge."
        )
    return [score.value for score in scores]


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
