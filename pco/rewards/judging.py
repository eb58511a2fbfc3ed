"""How a stage judges candidates: what the reward is given beside them, and what the stage depends on for it."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from data import store
from data.errors import BadInput, CorruptArtifact
from pco.config.reward import JudgeReward, RewardConfig, Single, parts
from pco.rewards import content
from pco.rewards.loading import reads_prompts
from pco.rewards.scores import Candidate, Reward, Score
from pco.stage import Artifact, Stage


def inputs(stage: Stage) -> dict[str, Artifact]:
    """What a stage that judges is given beside the config: what lies outside of it, by content; {} for most rewards.

    What cannot be read any more counts as unchanged, so that a run may be looked at where it was moved without it.

    Raises BadInput when it cannot be read from the start.
    """
    places = {name: (part, content.place(part)) for name, part in _judging(stage).items()}
    return {
        name: Artifact(place, _fingerprint(stage, name, part))
        for name, (part, place) in places.items()
        if place is not None
    }


def _judging(stage: Stage) -> dict[str, Single]:
    """What judges in a stage, by its name in the config; a second reward only measures."""
    second = stage.config.evaluate.second_reward if stage.name == "evaluate" else None
    return content.named(stage.config.reward) | (content.named(second, "second_reward") if second else {})


def _fingerprint(stage: Stage, name: str, part: Single) -> str:
    try:
        return str(content.digest(part))
    except BadInput:
        if (recorded := _recorded(stage, name)) is None:
            raise
        return recorded


def _recorded(stage: Stage, name: str) -> str | None:
    """What this stage, or else the run's first evaluation, was given."""
    for made in (stage, Stage("evaluate", 0, stage.config, {})):
        manifest = store.read_manifest(made.folder)
        if manifest is not None and name in manifest.inputs:
            return manifest.inputs[name]
    return None


def check_unchanged(stage: Stage) -> None:
    """Hold the files that the reward is made of to what the stage was told.

    Raises CorruptArtifact when one changed in between, BadInput when it cannot be read.
    """
    for name, part in _judging(stage).items():
        given = stage.inputs.get(name)
        if given is not None and (found := content.digest(part)) != given.fingerprint:
            raise CorruptArtifact(
                f"{given.folder}: what `{name}` is made of changed while the run was at work (digest {found}, expected "
                f"{given.fingerprint}). Restore it, or resume the run: it then tells which stages are stale."
            )


def judge(reward: Reward, stage: Stage, candidates: Sequence[Candidate]) -> list[Score]:
    """One score per candidate, in order.

    Where a reward reads prompts, candidates are handed over with more columns: `source_prompt`, the prompt as it stands
    in the user's file (`prompt` is rendered for the policy), and its `reference`, which may be None. In an evaluation
    a judge of candidates is given `baseline`: the starting policy's completion in the candidate's place. The candidates
    there are all of one policy, and who wins among them says nothing of it.
    """
    if reads_prompts(reward.config):
        prompts = _prompts(stage.inputs["prompts"])
        candidates = [_with_prompt(row, prompts[row["prompt_id"]]) for row in candidates]
        if stage.name == "evaluate" and _judges_candidates(reward.config):
            candidates = _with_baseline(candidates, stage)
    return reward.score(candidates)


@lru_cache(maxsize=1)
def _prompts(prepared: Artifact) -> dict[str, dict[str, Any]]:
    """The run's frozen prompts by their id, those of seed preferences too."""
    seeds = (
        store.read_table(prepared.folder, "preferences") if store.has_table(prepared.folder, "preferences") else None
    )
    return {
        row["prompt_id"]: {"prompt": row["source_prompt"], "reference": None}
        for row in (seeds.select(["prompt_id", "source_prompt"]).to_pylist() if seeds else [])
    } | {row["prompt_id"]: row for row in store.read_table(prepared.folder, "prompts").to_pylist()}


def _judges_candidates(config: RewardConfig) -> bool:
    return any(isinstance(part, JudgeReward) and part.against == "candidates" for part in parts(config))


def _with_baseline(candidates: Sequence[Candidate], stage: Stage) -> list[dict[str, Any]]:
    """The starting policy's own evaluation has no `start`: it is its own baseline."""
    start = stage.inputs.get("start")
    own = store.read_parts(stage.folder, "candidates", stage.fingerprint)
    rows = (own if start is None else store.read_table(start.folder, "candidates")).to_pylist()
    of = {(row["prompt_id"], row["mode"], row["sample"]): row["completion"] for row in rows}
    return [{**row, "baseline": of[row["prompt_id"], row["mode"], row["sample"]]} for row in candidates]


def _with_prompt(candidate: Candidate, prompt: Mapping[str, Any]) -> dict[str, Any]:
    if prompt["prompt"] is None:
        raise BadInput(
            "prompts.preferences: this run was prepared by a version that did not keep its prompts as they stand in "
            "the file, and the reward reads them. Prepare it anew with `pco resume RUN --from prepare --round 0`, or "
            "fork it with --set replay.rescore=false."
        )
    return {**candidate, "source_prompt": prompt["prompt"], "reference": prompt["reference"]}
