"""Remove policies of old rounds to save room, but never one that the run still needs (`keep_last`)."""

from pathlib import Path

from data import files
from pco.config.run import RunConfig
from pco.rounds import decisions
from pco.stage import Stage

_MARK = "policy.removed"


def prune(config: RunConfig) -> list[Path]:
    """Remove the policies that `keep_last` and `keep_best` do not keep; returns their folders.

    The policy of the last round is kept, since the next round may begin from it, and so is the best one.
    """
    if config.keep_last is None:
        return []
    decided = decisions(config)
    promoted = [number for number, decision in decided.items() if decision.promoted]
    kept = {*list(decided)[-config.keep_last :], *promoted[-config.keep_best :]}
    removable = [Stage("train", number, config).model_folder for number in decided if number not in kept]
    return [folder for folder in removable if _remove(folder)]


def was_removed(policy: Path) -> bool:
    """Whether a missing policy was removed on purpose."""
    return policy.with_name(_MARK).exists()


def mark_removed(policy: Path) -> None:
    """Note that a policy's folder is missing on purpose."""
    files.write_text(policy.with_name(_MARK), "Removed to save room: `keep_last` in the run's config.\n")


def _remove(folder: Path) -> bool:
    """Remove a policy. The note is written first: a kill in between leaves a policy that the next call removes."""
    if not folder.is_dir():
        return False
    mark_removed(folder)
    files.remove_folder(folder)
    return True
