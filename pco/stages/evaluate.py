"""Stage `evaluate`: a policy meets the held-out prompts and the human texts that no training ever sees."""

import math
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from data import schemas, store
from data.errors import BadInput
from pco import progress, rewards
from pco.config.reward import ExactAnswerReward, RewardConfig, parts
from pco.evaluation import lm_eval_tasks, metrics
from pco.evaluation.rows import CandidateRow, EvaluationRow
from pco.models.engine import Request, Sampler, free_memory
from pco.models.rendering import load_tokenizer, render, written
from pco.models.sampling import GREEDY, SAMPLED, sampled
from pco.progress import Progress
from pco.rewards import Reward
from pco.runs import policy
from pco.stage import Shard, Stage
from pco.stages.completions import complete_shards, in_shards, read_prompts

_GREEDY_SAMPLE = 0


def run(stage: Stage) -> store.Manifest:
    """Write the held-out `candidates` and the `evaluations` table.

    The inputs `start` and `previous` (evaluations of other policies) add the metrics against those policies.
    """
    started = stage.launched()
    current = policy.verified(stage)
    rewards.check_unchanged(stage)
    # Before the sampling: a fork takes over the prompts of another run, which were checked with that run's settings.
    lm_eval_tasks.check_names(stage.config.evaluate.tasks)
    heldout = {"the run's held-out prompts": read_prompts(stage, "heldout")}
    for _, reward in _judging(stage):
        rewards.check(reward, heldout)

    @cache
    def engine() -> Sampler:
        return Sampler(current.folder, stage.config.engine)

    tokenizer = load_tokenizer(current.folder)
    shards = _shards(stage, tokenizer)
    sampling = complete_shards(stage, shards, engine)
    candidates = store.read_parts(stage.folder, "candidates", stage.fingerprint).to_pylist()
    tasks = stage.config.evaluate.tasks

    @cache
    def task_model() -> Any:
        return lm_eval_tasks.model(current.folder)

    def make(index: int) -> Shard:
        if index == 0:
            rows, counts = _read(stage, engine()), Counter[str]()
            engine.cache_clear()
            free_memory()  # for the reward model
            return _evaluated(stage, _measured(stage, candidates, tokenizer, counts) + rows, counts)
        print(f"lm-eval: {tasks[index - 1]}", flush=True)
        return _evaluated(stage, lm_eval_tasks.rows(task_model(), tasks[index - 1], stage.config.evaluate.task_limit))

    # Each task of lm-eval is a shard of its own: none is done again after a kill.
    for index in stage.shards("evaluations", 1 + len(tasks), make):
        progress.report(Progress(index + 1, 1 + len(tasks), "evaluations"))
    rows = store.read_parts(stage.folder, "evaluations", stage.fingerprint).to_pylist()
    unscored = len(candidates) - sum(row["measure"] == "reward" for row in rows)
    return stage.finish(
        unit="held-out completions",
        rows_in=sum(map(len, shards)),
        rows_out=len(candidates),
        dropped={},
        started=started,
        metrics={
            **sampling,
            **metrics.summarise(rows),
            **({"without_reward": unscored} if unscored else {}),
            **rewards.metrics(store.counted(stage.folder, "evaluations", stage.fingerprint)),
        },
    )


def _evaluated(stage: Stage, rows: list[EvaluationRow], counts: Counter[str] | None = None) -> Shard:
    marked = [{**row, "policy": stage.inputs["policy"].fingerprint} for row in rows]
    return Shard(schemas.build("evaluations", marked), counts=counts or {})


def _read(stage: Stage, engine: Sampler) -> list[EvaluationRow]:
    """What the policy makes of given text: how likely it finds human texts, and what the starting policy sampled."""
    texts = read_prompts(stage, "text")
    rows = metrics.text_rows(
        [row["prompt_id"] for row in texts], engine.text_logprobs([row["prompt"] for row in texts])
    )
    if "start" not in stage.inputs:
        return rows
    start = stage.inputs["start"].folder
    sampled = [row for row in store.read_table(start, "candidates").to_pylist() if _read_again(row, engine.context)]
    logprobs = engine.logprobs([(row["prompt_token_ids"], row["token_ids"]) for row in sampled])
    kl = [metrics.kl_row(row, logprob) for row, logprob in zip(sampled, logprobs, strict=True)]
    return rows + metrics.drift_rows(rows, metrics.read(start)) + kl


def _read_again(candidate: CandidateRow, context: int) -> bool:
    """The first sample of each prompt, which costs enough on a CPU; vLLM needs room for a token more."""
    tokens = len(candidate["token_ids"])
    is_first = candidate["mode"] == SAMPLED and candidate["sample"] == 0
    return is_first and 0 < tokens < context - len(candidate["prompt_token_ids"])


def _measured(
    stage: Stage, candidates: list[CandidateRow], tokenizer: Any, counts: Counter[str]
) -> list[EvaluationRow]:
    """What is measured of completions; what a judge counted is added to `counts`."""
    answers = _answers(stage, candidates, tokenizer)
    scores: dict[str, list[float]] = {}
    met = {("length", row["prompt_id"]): float(len(row["token_ids"])) for row in answers}
    for name, config in _judging(stage):
        reward = rewards.load(config, stage.config.folder)
        scores[name], of_answers = _rewards(stage, reward, candidates, answers)
        counts.update(reward.counts)
        del reward  # an engine that outlived the next one's start would break it
        met |= {(name, row["prompt_id"]): value for row, value in zip(answers, of_answers, strict=True)}
        free_memory()  # for the second reward
    references = {row["prompt_id"]: row["completion"] for row in answers}
    rows = metrics.completion_rows(
        candidates, scores["reward"], second_rewards=scores.get("second_reward"), references=references
    )
    others = {name: metrics.read(stage.inputs[name].folder) for name in ("start", "previous") if name in stage.inputs}
    others["reference"] = metrics.reference_rows(rows, met)
    against = [row for name, other in others.items() for row in metrics.rows_against(name, rows, other)]
    return rows + against + metrics.corpus_rows(candidates)


def _judging(stage: Stage) -> list[tuple[str, RewardConfig]]:
    """The rewards by the metric that holds what they say."""
    second = stage.config.evaluate.second_reward
    return [("reward", stage.config.reward), *([("second_reward", second)] if second else [])]


def _answers(stage: Stage, candidates: list[CandidateRow], tokenizer: Any) -> list[CandidateRow]:
    """The prompts' reference answers as if the policy had written them."""
    references = {row["prompt_id"]: row["reference"] for row in read_prompts(stage, "heldout")}
    return [
        {**row, "completion": reference, "token_ids": written(tokenizer, reference), "logprob": math.nan}
        for row in candidates
        if row["mode"] == GREEDY and (reference := references[row["prompt_id"]]) is not None
    ]


def _rewards(
    stage: Stage, reward: Reward, candidates: list[CandidateRow], answers: list[CandidateRow]
) -> tuple[list[float], list[float]]:
    """The reward of each completion and of each reference answer; not finite where it got none.

    Raises BadInput when no completion got any: there would be no reward to compare.
    """
    scores = rewards.judge(reward, stage, candidates)
    if all(score.dropped for score in scores):
        raise BadInput(
            f"{stage.title}: none of {len(scores)} held-out completions got a reward "
            f"({dict(Counter(score.dropped for score in scores))}). See docs/rewards.md on what a reward cannot judge."
        )
    # A bare answer is no completion to judge.
    if any(isinstance(part, ExactAnswerReward) for part in parts(reward.config)):
        return [score.value for score in scores], [math.nan] * len(answers)
    return [score.value for score in scores], [score.value for score in rewards.judge(reward, stage, answers)]


def _shards(stage: Stage, tokenizer: Any) -> list[Sequence[Request]]:
    """One greedy and `samples` sampled completions per held-out prompt, in shards of `shard_size` prompts.

    The seeds do not depend on the round, so that two policies differ by their weights and not by their luck.
    """
    config, samples = stage.config, stage.config.evaluate.samples
    requests: list[Request] = []
    for row in read_prompts(stage, "heldout"):
        rendered = render(tokenizer, row["prompt"], config.policy)
        requests.append(Request(row["prompt_id"], _GREEDY_SAMPLE, rendered, 0, greedy=True))
        requests += sampled(row, tokenizer, config, "heldout", samples)
    return in_shards(requests, config.generate.shard_size * (1 + samples))
