"""A reward held to a public benchmark: its answers scored shard by shard, in a folder of its own."""

import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data import files, schemas, store
from data.errors import BadInput
from data.reward_benchmarks import Item
from data.rows import RewardBenchmarkRow
from pco import rewards
from pco.config.reward import (
    ExactAnswerReward,
    JudgeReward,
    LengthReward,
    RepetitionReward,
    RewardConfig,
    parts,
    settings,
)
from pco.evaluation.reward_benchmark import measured
from pco.progress import Progress
from pco.rewards.judge_replies import Estimate
from pco.rewards.llm_judge import UNREAD, Judge, Match
from pco.rewards.scores import Candidate, Counts, Score
from pco.runs.folder import locked

FOLDER = "reward-evaluations"  # in the folder of all runs
TABLE = "reward_benchmark"
NO_MARGIN = "Ties compare margins, and a judge gives none"
_VERSION = 1
SHARD_ITEMS = 64

OnProgress = Callable[[Progress], object]
REPORT = "report.md"


@dataclass(frozen=True)
class Plan:
    """A reward and the items that it is to score, in the folder that is named for both."""

    config: RewardConfig
    items: list[Item]
    folder: Path
    fingerprint: str
    reward: str
    """The reward's digest."""
    data: dict[str, str]
    """Digests of the files by their paths, in order."""
    max_cost: float | None = None

    @property
    def scored(self) -> list[Item]:
        """The items that this reward can score: a judge compares, and has no rewards to take margins of."""
        return [item for item in self.items if item.tie is None] if _judges(self.config) else self.items

    @property
    def starts(self) -> range:
        """Where each shard begins."""
        return range(0, len(self.scored), SHARD_ITEMS)


def plan(
    config: RewardConfig,
    items: list[Item],
    paths: Sequence[Path],
    *,
    name: str,
    out: Path,
    max_cost: float | None = None,
) -> Plan:
    """Check a reward and name the folder for its results, which holds a digest of all that decides them.

    Raises BadInput for a reward that cannot score texts alone, or cannot work.
    """
    for part in parts(config):
        if isinstance(part, RepetitionReward | LengthReward | ExactAnswerReward):
            raise BadInput(
                f"reward.kind: `{part.kind}` reads a policy's tokens or a prompt's `reference`, which a benchmark of "
                "texts does not have. Evaluate a model, a judge, or a function of texts."
            )
    if max_cost is not None and not _judges(config):
        raise BadInput("max_cost: only a judge costs money; leave it out.")
    if max_cost is not None and not isinstance(config, JudgeReward):
        raise BadInput("max_cost: holds for a judge alone, not for one in an ensemble. Leave it out, or evaluate that.")
    rewards.check(config, {})
    digest, data = rewards.digest(config), _digests(paths)
    identity = {"benchmark": _VERSION, "reward": digest, "data": list(data.values())}  # in order, as shards are
    fingerprint = files.digest(identity)
    slug = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:60] or "reward"
    planned = Plan(config, items, out / f"{slug}-{fingerprint[:8]}", fingerprint, digest, data, max_cost)
    if not planned.scored:
        raise BadInput(f"data: all {len(items)} prompts are of the subset Ties. {NO_MARGIN}; name other subsets, too.")
    return planned


def _digests(paths: Sequence[Path]) -> dict[str, str]:
    """Raises BadInput where two files are the same, whose prompts would count twice."""
    by_digest: dict[str, Path] = {}
    for path in paths:
        digest = files.file_digest(path)
        if digest in by_digest:
            raise BadInput(f"{path}: has the same content as {by_digest[digest]}. Name each file once.")
        by_digest[digest] = path
    return {str(path): digest for digest, path in by_digest.items()}


def estimates(plan: Plan) -> list[tuple[str, Estimate]]:
    """The model of each judge in the reward, with what it would be asked, and what that costs. Sends no request."""
    left = [i for i in range(len(plan.starts)) if not store.has_part(plan.folder, TABLE, i, plan.fingerprint)]
    matches = [match for i in left for item in _of_shard(plan, i) for match in _matches(item)]
    judges = [part for part in parts(plan.config) if isinstance(part, JudgeReward)]
    return [
        (config.model, Judge(config, plan.folder, defaultdict(float), max_cost=plan.max_cost).estimate(matches))
        for config in judges
    ]


def run(plan: Plan, on_progress: OnProgress) -> store.Manifest:
    """Score what is not scored yet, shard by shard, and finish the folder. The same call goes on after a kill.

    Raises what the reward raises, RunConflict when another process is at it, and BadInput when nothing got a reward.
    """
    with files.write_errors(plan.folder):
        plan.folder.mkdir(parents=True, exist_ok=True)
    with locked(plan.folder):
        manifest = store.read_manifest(plan.folder)
        return manifest or _run(plan, on_progress)


def _run(plan: Plan, on_progress: OnProgress) -> store.Manifest:
    started, score = time.time(), None
    for i, start in enumerate(plan.starts):
        if not store.has_part(plan.folder, TABLE, i, plan.fingerprint):
            score = score or _scorer(plan)
            _write(plan, i, score)
        on_progress(Progress(min(len(plan.scored), start + SHARD_ITEMS), len(plan.scored), "prompts"))
    rows: list[RewardBenchmarkRow] = store.read_parts(plan.folder, TABLE, plan.fingerprint).to_pylist()
    dropped = store.dropped_rows(plan.folder, TABLE, plan.fingerprint)
    if not rows:
        raise BadInput(f"{plan.folder}: no prompt got a reward for all its answers: {dict(dropped)}.")
    if len(plan.scored) < len(plan.items):
        dropped[NO_MARGIN] = len(plan.items) - len(plan.scored)
    result = measured(rows)
    return store.finish(
        plan.folder,
        stage=TABLE,
        fingerprint=plan.fingerprint,
        inputs=plan.data,
        settings={"reward": settings(plan.config)},
        unit="prompts",
        rows_in=len(plan.items),
        rows_out=len({row["item"] for row in rows}),
        dropped=dropped,
        started=started,
        metrics={
            "pair_accuracy": result.all.pairs.mean,
            "mean_of_subsets": result.mean_of_subsets,
            **rewards.metrics(store.counted(plan.folder, TABLE, plan.fingerprint)),
        },
    )


def _judges(config: RewardConfig) -> bool:
    return any(isinstance(part, JudgeReward) for part in parts(config))


def _of_shard(plan: Plan, index: int) -> list[Item]:
    start = plan.starts[index]
    return plan.scored[start : start + SHARD_ITEMS]


@dataclass(frozen=True)
class _Answer:
    """An answer's score; of a judge's, the shares in both orders."""

    score: Score
    as_first: float | None = None
    as_second: float | None = None


@dataclass(frozen=True)
class _Scorer:
    """Scores items, each as its answers in order, the right ones first."""

    score: Callable[[Sequence[Item]], list[list[_Answer]]]
    counts: Counts


def _scorer(plan: Plan) -> _Scorer:
    if isinstance(plan.config, JudgeReward):
        counts: Counts = defaultdict(float)
        judge = Judge(plan.config, plan.folder, counts, max_cost=plan.max_cost)
        return _Scorer(lambda items: _judged(items, judge), counts)
    reward = rewards.load(plan.config, plan.folder)
    return _Scorer(lambda items: _rewarded(items, reward), reward.counts)


def _write(plan: Plan, index: int, scorer: _Scorer) -> None:
    items, before = _of_shard(plan, index), dict(scorer.counts)
    dropped: Counter[str] = Counter()
    rows: list[RewardBenchmarkRow] = []
    for i, (item, answers) in enumerate(zip(items, scorer.score(items), strict=True), start=plan.starts[index]):
        reasons = [answer.score.dropped for answer in answers if answer.score.dropped]
        if reasons:
            dropped[reasons[0]] += 1
        else:
            rows += _rows(i, item, answers, plan.reward)
    counts = {name: value - before.get(name, 0.0) for name, value in scorer.counts.items()}
    store.write_part(
        plan.folder,
        TABLE,
        index,
        schemas.build(TABLE, rows),
        plan.fingerprint,
        of=len(plan.starts),
        dropped=dropped,
        counts=counts,
    )


def _matches(item: Item) -> list[Match]:
    """Each wrong answer against the right one."""
    return [Match(item.prompt, wrong, item.correct[0]) for wrong in item.incorrect]


def _judged(items: Sequence[Item], judge: Judge) -> list[list[_Answer]]:
    verdicts = iter(judge.verdicts([match for item in items for match in _matches(item)]))
    answers = []
    for item in items:
        of_item = [_Answer(Score(0.5))]
        for _ in item.incorrect:
            found = next(verdicts)
            score = Score(float("nan"), why_none=UNREAD) if found.share is None else Score(found.share)
            of_item.append(_Answer(score, found.first, found.second))
        answers.append(of_item)
    return answers


def _rewarded(items: Sequence[Item], reward: rewards.Reward) -> list[list[_Answer]]:
    candidates: list[Candidate] = []
    for item in items:
        for sample, text in enumerate((*item.correct, *item.incorrect)):
            candidates.append(_candidate(item, sample, text))
    scores = iter(reward.score(candidates))
    return [[_Answer(next(scores)) for _ in (*item.correct, *item.incorrect)] for item in items]


def _candidate(item: Item, sample: int, text: str) -> Candidate:
    """The right answer is what a judge in an ensemble compares with."""
    return {
        "prompt_id": item.prompt_id,
        "sample": sample,
        "prompt": item.prompt,
        "source_prompt": item.prompt,
        "messages": item.messages,
        "completion": text,
        "reference": item.correct[0],
        "baseline": item.correct[0],
    }


def _rows(index: int, item: Item, answers: Sequence[_Answer], reward: str) -> list[RewardBenchmarkRow]:
    texts = [*item.correct, *item.incorrect]
    kind, number = item.tie or (None, None)
    return [
        {
            "item": index,
            "source_id": item.source_id,
            "subset": item.subset,
            "tie": kind,
            "tie_number": number,
            "correct": i < len(item.correct),
            "length": len(text),
            "reward": answer.score.value,
            "as_first": answer.as_first,
            "as_second": answer.as_second,
            "reward_model": reward,
        }
        for i, (text, answer) in enumerate(zip(texts, answers, strict=True))
    ]
