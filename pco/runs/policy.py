"""A policy on disk: a model folder and the digest that names it in every table."""

from data import files
from data.errors import CorruptArtifact
from pco.runs import retention
from pco.stage import Artifact, Stage


def verified(stage: Stage) -> Artifact:
    """The stage's `policy` input, after a check of its files against its digest; raises CorruptArtifact."""
    policy = stage.inputs["policy"]
    if not policy.folder.is_dir():
        why = "was removed to save room (`keep_last`)" if retention.was_removed(policy.folder) else "is gone"
        raise CorruptArtifact(
            f"{policy.folder}: the policy's folder {why}. Restore it, then resume; {_other_way(stage, policy)}"
        )
    digest = files.folder_digest(policy.folder)
    if digest != policy.fingerprint:
        raise CorruptArtifact(
            f"{policy.folder}: its files changed since the run recorded them (digest {digest}, expected "
            f"{policy.fingerprint}). Restore them, then resume; {_other_way(stage, policy)}"
        )
    return policy


def _other_way(stage: Stage, policy: Artifact) -> str:
    begun = stage.config.begun
    if begun and begun.from_run and policy.fingerprint == begun.policy:
        return f"it is the best policy of {begun.from_run}, from which this run of the series begins."
    return f"a policy that a round made can be made again: `pco resume {stage.config.run} --from train --round N`."
