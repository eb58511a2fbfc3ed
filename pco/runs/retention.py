"""Policies of rounds long past may be removed to save room, but never one that a run still needs (`keep_last`)."""

from pathlib import Path

from data import store
from pco.config.run import RunConfig
from pco.stage import Stage, round_folder

_MARK = "policy.removed"


def prune(config: RunConfig) -> list[Path]:
    """Remove the policies that `keep_last` and `keep_best` give up; returns their folders.

    The last round's policy stays, since the next round may begin from it, and so does the best one.
    """
    verdicts = _verdicts(config)
    if config.keep_last is None:
        return []
    promoted = [number for number, verdict in verdicts.items() if verdict]
    kept = {*list(verdicts)[-config.keep_last :], *promoted[-config.keep_best :]}
    removed = [policy_folder(config, number) for number in verdicts if number not in kept]
    return [folder for folder in removed if _remove(folder)]


def was_removed(policy: Path) -> bool:
    """Whether a policy that is not there was removed on purpose."""
    return policy.with_name(_MARK).exists()


def mark_removed(policy: Path) -> None:
    """Note that a policy's folder is missing on purpose."""
    store.write_text(policy.with_name(_MARK), "Removed to save room: `keep_last` in the run's config.\n")


def policy_folder(config: RunConfig, number: int) -> Path:
    """Where a round's policy lies."""
    return round_folder(config, number) / "policy"


def _verdicts(config: RunConfig) -> dict[int, bool]:
    """Of the rounds that are decided, in order: whether each was promoted."""
    manifests = {
        number: store.read_manifest(Stage("decide", number, config, {}).folder)
        for number in range(1, config.rounds + 1)
    }
    return {number: made.outputs["promoted"] == "yes" for number, made in manifests.items() if made is not None}


def _remove(folder: Path) -> bool:
    """The note comes first: a kill in between leaves a policy that the next call removes."""
    if not folder.is_dir():
        return False
    mark_removed(folder)
    store.remove_folder(folder)
    return True
