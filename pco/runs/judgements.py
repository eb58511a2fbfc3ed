"""Judgements of a run's evaluated policy, imported or asked for, in a folder of their own within the run's."""

import re
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data import files, schemas, store
from data.errors import BadInput
from data.rows import JudgementRow
from pco import rewards
from pco.config.reward import JudgeReward, RewardConfig, settings
from pco.config.run import RunConfig
from pco.evaluation.export import Answer, answers, outputs
from pco.evaluation.judgements import annotated, row
from pco.rewards.judge_replies import Estimate, has_prices
from pco.rewards.llm_judge import UNREAD, Judge, Match
from pco.rewards.scores import Counts
from pco.runs import verify
from pco.runs.folder import find_round, locked

FOLDER = "judgements"  # in the run's folder
TABLE = "judgements"


@dataclass(frozen=True)
class Evaluated:
    """A policy's finished evaluation: its run, its folder, and its answers by the ids of their prompts."""

    name: str
    config: RunConfig
    folder: Path
    answers: dict[str, Answer]

    @property
    def fingerprint(self) -> str:
        """What stands for the evaluation."""
        manifest = store.read_manifest(self.folder)
        assert manifest is not None, "only finished evaluations are read"
        return manifest.fingerprint


def evaluated(name: str, runs_dir: Path) -> Evaluated:
    """The evaluation that `RUN` or `RUN:ROUND` names. Raises BadInput when there is none."""
    config, number = find_round(name, runs_dir)
    folder = verify.evaluation(config, number)
    return Evaluated(name, config, folder, answers(config, folder))


def imported(policy: Evaluated, annotations: Path) -> Path:
    """Import AlpacaEval's annotations of a policy's answers; returns the folder of the table `judgements`.

    Raises BadInput as `annotated` does.
    """
    started = time.time()
    rows = annotated(annotations, policy.answers)
    content = files.file_digest(annotations)
    identity = {"annotations": content, "evaluation": policy.fingerprint}
    folder = _folder(policy, annotations.stem, identity)
    with files.write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if store.read_manifest(folder) is None:
            dropped = {"no annotation with a preference": len(policy.answers) - len(rows)}
            _finish(folder, policy, rows, identity, dropped, started, inputs={annotations.name: content})
    return folder


@dataclass(frozen=True)
class Contest:
    """A policy's answers and another's to the same prompts, and the judge between them."""

    policy: Evaluated
    others: dict[str, str]
    """The other's answers by the ids of their prompts."""
    judge: JudgeReward
    folder: Path
    identity: dict[str, str]
    max_cost: float | None = None
    counts: Counts = field(default_factory=lambda: defaultdict(float))

    @property
    def matches(self) -> list[Match]:
        """A match for each prompt, in order."""
        mine = self.policy.answers
        return [Match(answer.prompt, answer.text, self.others[prompt_id]) for prompt_id, answer in mine.items()]

    def asking(self) -> Judge:
        """The judge, who keeps its replies in the contest's folder."""
        return Judge(self.judge, self.folder, self.counts, max_cost=self.max_cost)


def contest(
    policy: Evaluated, against: str, judge: RewardConfig, *, runs_dir: Path, max_cost: float | None = None
) -> Contest:
    """A policy's answers against those of `RUN:ROUND`, or of a file in the form of AlpacaEval's `model_outputs.json`.

    Raises BadInput where a prompt has no other answer, with how many, and for a reward that is no judge.
    """
    if not isinstance(judge, JudgeReward):
        raise BadInput(f"reward.kind: expected `judge`, found `{judge.kind}`. Name a config whose reward is a judge.")
    others = _others(policy, against, runs_dir)
    missing = len(policy.answers) - len(others)
    if missing:
        raise BadInput(
            f"{against}: has no answer to {missing} of the {len(policy.answers)} prompts that {policy.name} was "
            "evaluated on. Both must have answered the same prompts."
        )
    reward = rewards.digest(judge)
    identity = {"judge": reward, "evaluation": policy.fingerprint, "others": files.digest(others)}
    folder = _folder(policy, f"{judge.model} vs {Path(against).name}", identity)
    return Contest(policy, others, judge, folder, identity, max_cost)


def estimate(contest: Contest) -> Estimate:
    """What the judge is still to be asked, and what it costs at most. No request is sent."""
    if store.read_manifest(contest.folder) is not None:
        return Estimate(0, 2 * len(contest.others), 0, 0, 0.0 if has_prices(contest.judge) else None)
    return contest.asking().estimate(contest.matches)


def judged(contest: Contest) -> Path:
    """Ask the judge for what it has not answered yet; returns the folder of the table `judgements`.

    Raises what the judge raises; its answers so far are kept, and the same call goes on.
    """
    started, folder = time.time(), contest.folder
    with files.write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if store.read_manifest(folder) is None:
            rows = _judged(contest)
            dropped = {UNREAD: len(contest.others) - len(rows)}
            _finish(
                folder,
                contest.policy,
                rows,
                contest.identity,
                dropped,
                started,
                inputs={},
                judge=contest.judge,
                metrics=rewards.metrics(contest.counts),
            )
    return folder


def _judged(contest: Contest) -> list[JudgementRow]:
    matches = contest.matches
    verdicts = contest.asking().verdicts(matches)
    rows = []
    for prompt_id, match, found in zip(contest.others, matches, verdicts, strict=True):
        if found.share is not None:
            rows.append(row(prompt_id, match.text, match.opponent, found.share, first=found.first, second=found.second))
    if not rows:
        raise BadInput(
            f"{contest.judge.base_url}: none of {len(matches)} comparisons has a readable verdict in both orders."
        )
    return rows


def _others(policy: Evaluated, against: str, runs_dir: Path) -> dict[str, str]:
    """The other's answers to the policy's prompts, those that there are."""
    if Path(against).suffix in {".json", ".jsonl"} or (files.exists(Path(against)) and Path(against).is_file()):
        by_prompt = outputs(Path(against))
    else:
        by_prompt = {answer.prompt: answer.text for answer in evaluated(against, runs_dir).answers.values()}
    return {
        prompt_id: by_prompt[answer.prompt]
        for prompt_id, answer in policy.answers.items()
        if answer.prompt in by_prompt
    }


def _folder(policy: Evaluated, name: str, identity: dict[str, str]) -> Path:
    """Named for a digest of all that decides the result, so that results never share a folder."""
    slug = re.sub(r"[^A-Za-z0-9]+", "-", f"{policy.folder.parent.name} {name}").strip("-")[:80]
    return policy.config.folder / FOLDER / f"{slug}-{files.digest(identity)[:8]}"


def _finish(
    folder: Path,
    policy: Evaluated,
    rows: Sequence[JudgementRow],
    identity: dict[str, str],
    dropped: dict[str, int],
    started: float,
    *,
    inputs: dict[str, str],
    judge: JudgeReward | None = None,
    metrics: dict[str, float] | None = None,
) -> None:
    fingerprint = files.digest(identity)
    store.write_part(folder, TABLE, 0, schemas.build(TABLE, rows), fingerprint)
    store.finish(
        folder,
        stage=TABLE,
        fingerprint=fingerprint,
        inputs={"evaluation": policy.fingerprint, **inputs},
        settings={"policy": policy.name, "judge": settings(judge) if judge else None},
        unit="prompts",
        rows_in=len(policy.answers),
        rows_out=len(rows),
        dropped={reason: many for reason, many in dropped.items() if many},
        started=started,
        metrics=metrics,
    )
