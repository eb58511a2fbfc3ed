"""How a stage scores candidates: the columns that a reward needs, and the files that it is made of."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TypedDict, cast

from data import store
from data.errors import BadInput, CorruptArtifact
from data.rows import CandidateRow, Message, PromptRow
from pco.config.reward import JudgeReward, Single, parts
from pco.rewards import content
from pco.rewards.loading import reads_prompts
from pco.rewards.scores import Candidate, Candidates, Reward, Score
from pco.specs import EVALUATIONS
from pco.stage import Artifact, Stage


class _Prompt(TypedDict):
    """A prompt as it is in the user's file; None where an earlier version did not keep it."""

    prompt: str | None
    reference: str | None
    messages: list[Message] | None


def inputs(stage: Stage) -> dict[str, Artifact]:
    """The files that a stage's rewards are made of, as inputs by content; {} for most rewards.

    A file that can no longer be read counts as unchanged, so that a run can be read where it was moved without it.

    Raises BadInput when a file could never be read.
    """
    places = {name: (part, content.place(part)) for name, part in _rewards_of(stage).items()}
    return {
        name: Artifact(place, _fingerprint(stage, name, part))
        for name, (part, place) in places.items()
        if place is not None
    }


def _rewards_of(stage: Stage) -> dict[str, Single]:
    """The rewards of a stage by their names in the config; only an evaluation uses the second reward."""
    second = stage.config.evaluate.second_reward if stage.name in EVALUATIONS else None
    return content.named(stage.config.reward) | (content.named(second, "second_reward") if second else {})


def _fingerprint(stage: Stage, name: str, part: Single) -> str:
    try:
        return str(content.digest(part))
    except BadInput:
        if (recorded := _recorded(stage, name)) is None:
            raise
        return recorded


def _recorded(stage: Stage, name: str) -> str | None:
    """The fingerprint of that input in this stage, or else in the run's first evaluation."""
    for finished in (stage, Stage("evaluate", 0, stage.config, {})):
        manifest = store.read_manifest(finished.folder)
        if manifest is not None and name in manifest.inputs:
            return manifest.inputs[name]
    return None


def check_unchanged(stage: Stage) -> None:
    """Check that the files of the reward are still those that the stage was started with.

    Raises CorruptArtifact when one changed in between, BadInput when it cannot be read.
    """
    for name, part in _rewards_of(stage).items():
        expected = stage.inputs.get(name)
        if expected is None:
            continue
        digest = content.digest(part)
        if digest != expected.fingerprint:
            raise CorruptArtifact(
                f"{expected.folder}: what `{name}` is made of changed while the run was at work (digest {digest}, "
                f"expected {expected.fingerprint}). Restore it, or resume the run: it then says which stages are stale."
            )


def score_rows(reward: Reward, stage: Stage, rows: Sequence[Mapping[str, object]]) -> list[Score]:
    """One score for each row of `candidates`, in order.

    For a reward that reads prompts, more columns are added: `source_prompt`, the prompt as it is in the user's file
    (`prompt` is rendered for the policy), its `messages`, None unless it is a conversation, which `source_prompt` then
    has as a dialogue, and its `reference`, which may be None. In an evaluation, a judge that
    compares candidates also gets `baseline`: the starting policy's completion of the same prompt, mode and sample. The
    candidates of an evaluation are all of one policy, so their wins over each other would not measure the policy.
    """
    candidates = [cast(Candidate, row) for row in rows]
    if reads_prompts(reward.config):
        prompts = _prompts(stage.inputs["prompts"])
        candidates = [_with_prompt(row, prompts[row["prompt_id"]]) for row in candidates]
        judges = [part for part in parts(reward.config) if isinstance(part, JudgeReward)]
        if stage.name in EVALUATIONS and any(judge.against == "candidates" for judge in judges):
            candidates = _with_baseline(candidates, stage)
    return reward.score(candidates)


@lru_cache(maxsize=1)
def _prompts(prepared: Artifact) -> dict[str, _Prompt]:
    """The run's frozen prompts by their id, with those of the seed preferences."""
    by_id: dict[str, _Prompt] = {}
    if store.has_table(prepared.folder, "preferences"):
        seeds = store.read_table(prepared.folder, "preferences").select(["prompt_id", "source_prompt", "messages"])
        for seed in seeds.to_pylist():
            by_id[seed["prompt_id"]] = {
                "prompt": seed["source_prompt"],
                "reference": None,
                "messages": seed["messages"],
            }
    rows: list[PromptRow] = store.read_table(prepared.folder, "prompts").to_pylist()
    for row in rows:
        by_id[row["prompt_id"]] = {
            "prompt": row["prompt"],
            "reference": row["reference"],
            "messages": row["messages"],
        }
    return by_id


def _with_baseline(candidates: Candidates, stage: Stage) -> list[Candidate]:
    """The starting policy's own evaluation has no input `start`: it is its own baseline."""
    start = stage.inputs.get("start")
    own = store.read_parts(stage.folder, "candidates", stage.fingerprint)
    table = own if start is None else store.read_table(start.folder, "candidates")
    rows: list[CandidateRow] = table.to_pylist()
    baselines: dict[tuple[str, str | None, int], str] = {
        (row["prompt_id"], row["mode"], row["sample"]): row["completion"] for row in rows
    }
    return [{**row, "baseline": baselines[row["prompt_id"], row["mode"], row["sample"]]} for row in candidates]


def _with_prompt(candidate: Candidate, prompt: _Prompt) -> Candidate:
    if prompt["prompt"] is None:
        raise BadInput(
            "prompts.preferences: this run was prepared by a version that did not keep its prompts as they are in "
            "the file, and the reward reads them. Prepare it again with `pco resume RUN --from prepare --round 0`, or "
            "fork it with --set replay.rescore=false."
        )
    return {
        **candidate,
        "source_prompt": prompt["prompt"],
        "messages": prompt["messages"],
        "reference": prompt["reference"],
    }
