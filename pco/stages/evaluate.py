"""Stage `evaluate`: a policy on the held-out prompts and the human texts, which no training sees."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain
from typing import Any

from data import schemas, store
from data.errors import BadInput
from data.prompts import asked
from data.rows import CandidateRow, EvaluationRow
from pco import rewards
from pco.config.reward import ExactAnswerReward, RewardConfig, parts
from pco.evaluation import lm_eval_tasks, metrics
from pco.evaluation.judged import judged_prompts
from pco.models.engine import Request, Sampler, free_memory
from pco.models.protocols import Tokenizer
from pco.models.rendering import load_tokenizer, render, written
from pco.models.sampling import GREEDY, SAMPLED, sampled
from pco.rewards import Reward
from pco.runs import policy
from pco.sharding import OnDone, Shard
from pco.stage import Stage
from pco.stages.completions import complete_shards, in_shards, read_prompts

_GREEDY_SAMPLE = 0


def run(stage: Stage) -> store.Manifest:
    """Write the held-out `candidates` and the `evaluations` table.

    The inputs `start` and `previous` (evaluations of other policies) add the metrics against those policies.
    """
    return evaluated(stage, "heldout", "held-out", stage.config.evaluate.tasks)


def evaluated(
    stage: Stage, split: str, name: str, tasks: Sequence[str] = (), write_more: Callable[[], object] = lambda: None
) -> store.Manifest:
    """Evaluate the stage's policy on the prompts of one split, which `name` names for people; finish the stage.

    `write_more` is called when both tables are written, and may write others before the manifest.
    """
    started = stage.launched()
    current = policy.verified(stage)
    rewards.check_unchanged(stage)
    # Before the sampling: a fork shares the prompts of another run, which were checked with that run's settings.
    lm_eval_tasks.check_names(list(tasks))
    prompts = {f"the run's {name} prompts": read_prompts(stage, split)}
    for _, reward in _rewards_by_metric(stage):
        rewards.check(reward, prompts)

    @cache
    def engine() -> Sampler:
        return Sampler(current.folder, stage.config.engine)

    tokenizer = load_tokenizer(current.folder)
    shards = _shards(stage, tokenizer, split)
    sampling = complete_shards(stage, shards, engine)
    candidates: list[CandidateRow] = store.read_parts(stage.folder, "candidates", stage.fingerprint).to_pylist()

    @cache
    def task_model() -> Any:
        return lm_eval_tasks.model(current.folder)

    def make(index: int, _: OnDone) -> Shard:
        if index == 0:
            rows, counts = _read(stage, engine()), Counter[str]()
            engine.cache_clear()
            free_memory()  # for the reward model
            return _evaluation_shard(stage, _measured(stage, candidates, tokenizer, split, counts) + rows, counts)
        engine.cache_clear()  # of a worker that sampled, and makes no other evaluation
        free_memory()
        print(f"lm-eval: {tasks[index - 1]}", flush=True)
        return _evaluation_shard(
            stage, lm_eval_tasks.rows(task_model(), tasks[index - 1], stage.config.evaluate.task_limit)
        )

    # Each task of lm-eval is a shard of its own, so that none is repeated after a kill.
    for _ in stage.shards("evaluations", [1] * (1 + len(tasks)), make):
        pass  # progress counts completions
    rows = store.read_parts(stage.folder, "evaluations", stage.fingerprint).to_pylist()
    write_more()
    judged = _judged(stage, candidates)
    to_score = [row for row in candidates if judged is None or row["prompt_id"] in judged]
    unscored = len(to_score) - sum(row["measure"] == "reward" for row in rows)
    return stage.finish(
        unit=f"{name} completions",
        rows_in=sum(map(len, shards)),
        rows_out=len(candidates),
        dropped={},
        started=started,
        metrics={
            **sampling,
            **metrics.summarise(metrics.with_best_of_n(rows)),
            **({"without_reward": unscored} if unscored else {}),
            **({} if judged is None else {"judged_prompts": len(judged)}),
            **rewards.metrics(store.counted(stage.folder, "evaluations", stage.fingerprint)),
        },
    )


def _evaluation_shard(stage: Stage, rows: list[EvaluationRow], counts: Counter[str] | None = None) -> Shard:
    marked = [{**row, "policy": stage.inputs["policy"].fingerprint} for row in rows]
    return Shard(schemas.build("evaluations", marked), counts=counts or {})


def _read(stage: Stage, engine: Sampler) -> list[EvaluationRow]:
    """Log-probabilities under the policy: of human texts, and of samples of the starting policy."""
    texts = read_prompts(stage, "text")
    logprobs_of_texts = engine.text_logprobs([row["prompt"] for row in texts]) if texts else []
    rows = metrics.text_rows([row["prompt_id"] for row in texts], logprobs_of_texts)
    if "start" not in stage.inputs:
        return rows
    start = stage.inputs["start"].folder
    sampled = [row for row in store.read_table(start, "candidates").to_pylist() if _read_again(row, engine.context)]
    logprobs = engine.logprobs([(row["prompt_token_ids"], row["token_ids"]) for row in sampled])
    kl = [metrics.kl_row(row, logprob) for row, logprob in zip(sampled, logprobs, strict=True)]
    return rows + metrics.drift_rows(rows, metrics.read(start)) + kl


def _read_again(candidate: CandidateRow, context: int) -> bool:
    """Whether this is the first sample of its prompt (all would be slow on a CPU) and leaves vLLM room for a token."""
    tokens = len(candidate["token_ids"])
    is_first = candidate["mode"] == SAMPLED and candidate["sample"] == 0
    return is_first and 0 < tokens < context - len(candidate["prompt_token_ids"])


def _measured(
    stage: Stage, candidates: list[CandidateRow], tokenizer: Tokenizer, split: str, counts: Counter[str]
) -> list[EvaluationRow]:
    """The metrics of completions. The counts of a judge are added to `counts`."""
    answers = _answers(stage, candidates, tokenizer, split)
    scores: dict[str, list[float]] = {}
    of_references = {("length", row["prompt_id"]): float(len(row["token_ids"])) for row in answers}
    for name, config in _rewards_by_metric(stage):
        reward = rewards.load(config, stage.config.folder)
        judged = _judged(stage, candidates) if name == "reward" else None
        scores[name], answer_rewards = _rewards(stage, reward, candidates, answers, judged)
        counts.update(reward.counts)
        del reward  # its engine must be gone before the next one starts
        of_references |= {(name, row["prompt_id"]): value for row, value in zip(answers, answer_rewards, strict=True)}
        free_memory()  # for the second reward
    references = {row["prompt_id"]: row["completion"] for row in answers}
    rows = metrics.completion_rows(
        candidates, scores["reward"], second_rewards=scores.get("second_reward"), references=references
    )
    others = {name: metrics.read(stage.inputs[name].folder) for name in ("start", "previous") if name in stage.inputs}
    others["reference"] = metrics.reference_rows(rows, of_references)
    against = chain.from_iterable(metrics.rows_against(name, rows, other) for name, other in others.items())
    return [*rows, *against, *metrics.corpus_rows(candidates)]


def _judged(stage: Stage, candidates: list[CandidateRow]) -> set[str] | None:
    """The prompts whose completions get the reward; None for all. A final test gives it to all."""
    judged = stage.config.gate.judged
    if judged is None or stage.name != "evaluate":
        return None
    return judged_prompts((row["prompt_id"] for row in candidates), judged.share, stage.config.seed)


def _rewards_by_metric(stage: Stage) -> list[tuple[str, RewardConfig]]:
    """The config of each reward, with the metric for its values."""
    second = stage.config.evaluate.second_reward
    return [("reward", stage.config.reward), *([("second_reward", second)] if second else [])]


def _answers(stage: Stage, candidates: list[CandidateRow], tokenizer: Tokenizer, split: str) -> list[CandidateRow]:
    """The prompts' reference answers as rows of `candidates`, as if the policy had written them."""
    references = {row["prompt_id"]: row["reference"] for row in read_prompts(stage, split)}
    answers: list[CandidateRow] = []
    for row in candidates:
        reference = references[row["prompt_id"]]
        if row["mode"] == GREEDY and reference is not None:
            tokens = written(tokenizer, reference)
            answers.append({**row, "completion": reference, "token_ids": tokens, "logprob": math.nan})
    return answers


def _rewards(
    stage: Stage,
    reward: Reward,
    candidates: list[CandidateRow],
    answers: list[CandidateRow],
    judged: set[str] | None,
) -> tuple[list[float], list[float]]:
    """The reward of each completion and of each reference answer; not finite where there is none.

    Only `judged` prompts get one, if they are given.

    Raises BadInput when no completion has one: there would be no reward to compare.
    """
    if judged is not None:
        some, their_answers = ([row for row in rows if row["prompt_id"] in judged] for rows in (candidates, answers))
        values, answer_values = _rewards(stage, reward, some, their_answers, None)
        return _spread(values, candidates, judged), _spread(answer_values, answers, judged)
    scores = rewards.score_rows(reward, stage, candidates)
    if all(score.dropped for score in scores):
        raise BadInput(
            f"{stage.title}: none of {len(scores)} completions got a reward "
            f"({dict(Counter(score.dropped for score in scores))}). See docs/rewards.md on what a reward cannot judge."
        )
    # A bare answer does not have the form of a completion.
    if any(isinstance(part, ExactAnswerReward) for part in parts(reward.config)):
        return [score.value for score in scores], [math.nan] * len(answers)
    return [score.value for score in scores], [score.value for score in rewards.score_rows(reward, stage, answers)]


def _spread(values: list[float], rows: list[CandidateRow], judged: set[str]) -> list[float]:
    """The values of the rows of judged prompts, and NaN for the others."""
    of_judged = iter(values)
    return [next(of_judged) if row["prompt_id"] in judged else math.nan for row in rows]


def _shards(stage: Stage, tokenizer: Tokenizer, split: str) -> list[Sequence[Request]]:
    """One greedy and `samples` sampled completions per prompt of the split, in shards of `shard_size` prompts.

    The seeds do not depend on the round, so that two policies differ by their weights and not by chance.
    """
    config, samples = stage.config, stage.config.evaluate.samples
    requests: list[Request] = []
    for row in read_prompts(stage, split):
        rendered = render(tokenizer, asked(row), config.policy)
        requests.append(Request(row["prompt_id"], _GREEDY_SAMPLE, rendered, 0, greedy=True))
        requests += sampled(row, tokenizer, config, split, samples)
    return in_shards(requests, config.generate.shard_size * (1 + samples))
