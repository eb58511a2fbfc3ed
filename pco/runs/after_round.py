"""What a run's folder owes to a round that is decided: the link to the best policy, and room for the next one."""

from pathlib import Path

from data import store
from pco.config.run import RunConfig
from pco.runs import retention
from pco.runs.folder import point_to_best
from pco.stage import Artifact, Stage


def keep_best(config: RunConfig, number: int, best: Artifact) -> list[Path]:
    """Point `best` to the best policy so far and remove those that `keep_last` gives up; returns what was removed.

    Does nothing for a round that others follow already: a resumed run comes by the earlier rounds again.
    """
    if store.read_manifest(Stage("decide", number + 1, config).folder) is not None:
        return []
    point_to_best(config, best.folder)
    return retention.prune(config)
