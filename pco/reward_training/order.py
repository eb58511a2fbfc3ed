"""The order of the stages of a reward training, and their inputs."""

from collections.abc import Callable
from pathlib import Path

from data import files, store
from data.errors import CorruptArtifact
from data.store import Manifest
from pco.config.reward_training import RewardTraining
from pco.specs import RewardStageName
from pco.stage import Artifact, Stage, file_fingerprint


def walk(config: RewardTraining, do: Callable[[Stage[RewardTraining]], Manifest]) -> Manifest:
    """Pass every stage to `do`, which makes sure that it is finished; returns the test's manifest."""
    split = planned(config)
    manifest = do(split)
    pairs = split.result(manifest)
    start = Artifact(Path(manifest.outputs["model_folder"]), manifest.outputs["model"])
    train = _stage("train_reward", config, pairs=pairs, model=start)
    model = train.saved_model(do(train))
    return do(_stage("evaluate_reward", config, pairs=pairs, model=model))


def is_finished(config: RewardTraining) -> bool:
    """Whether every stage is done, by the folder alone."""

    def visit(stage: Stage[RewardTraining]) -> Manifest:
        manifest = stage.finished()
        if manifest is None:
            raise _NotDone
        return manifest

    try:
        walk(config, visit)
    except _NotDone:
        return False
    return True


class _NotDone(Exception):
    """Ends a walk at the first stage that is not done."""


def _stage(name: RewardStageName, config: RewardTraining, **inputs: Artifact) -> Stage[RewardTraining]:
    return Stage(name, 0, config, inputs)


def planned(config: RewardTraining) -> Stage[RewardTraining]:
    """The first stage; its inputs are the user's files, by content.

    Raises BadInput when one of them cannot be read.
    """
    frozen = store.read_manifest(_stage("split", config).folder)
    recorded = frozen.inputs if frozen else {}
    inputs = {
        name: Artifact(path, file_fingerprint(path, recorded.get(name), key=name))
        for name, path in config.files.items()
    }
    return _stage("split", config, **inputs)


def verified(stage: Stage[RewardTraining]) -> Artifact:
    """The stage's `model` input, after a check of its files against its digest; raises CorruptArtifact."""
    model = stage.inputs["model"]
    digest = files.folder_digest(model.folder) if model.folder.is_dir() else "none: the folder is gone"
    if digest != model.fingerprint:
        raise CorruptArtifact(
            f"{model.folder}: its files changed since they were recorded (digest {digest}, expected "
            f"{model.fingerprint}). Restore them, or train under another name (`--set run=...`)."
        )
    return model
