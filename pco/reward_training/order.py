"""Which stage of a reward training follows which, and what each is given."""

from collections.abc import Callable
from pathlib import Path

from data import store
from data.errors import CorruptArtifact
from data.store import Manifest
from pco.config.reward_training import RewardTraining
from pco.stage import Artifact, RewardStageName, Stage, file_fingerprint


def walk(config: RewardTraining, do: Callable[[Stage[RewardTraining]], Manifest]) -> Manifest:
    """Hand every stage to `do`, which makes sure that it is finished; returns the test's manifest."""
    split = planned(config)
    manifest = do(split)
    pairs = split.result(manifest)
    start = Artifact(Path(manifest.outputs["model_folder"]), manifest.outputs["model"])
    train = _stage("train_reward", config, pairs=pairs, model=start)
    model = train.saved_model(do(train))
    return do(_stage("evaluate_reward", config, pairs=pairs, model=model))


def is_finished(config: RewardTraining) -> bool:
    """Whether every stage is done, told from the folder alone."""

    def look(stage: Stage[RewardTraining]) -> Manifest:
        if (manifest := stage.finished()) is None:
            raise _NotDone
        return manifest

    try:
        walk(config, look)
    except _NotDone:
        return False
    return True


class _NotDone(Exception):
    pass


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
    """The stage's `model` input, after checking that the folder still holds the weights it is said to hold."""
    model = stage.inputs["model"]
    found = store.folder_digest(model.folder) if model.folder.is_dir() else "none: the folder is gone"
    if found != model.fingerprint:
        raise CorruptArtifact(
            f"{model.folder}: its files changed since they were recorded (digest {found}, expected "
            f"{model.fingerprint}). Restore them, or train under another name (`--set run=...`)."
        )
    return model
