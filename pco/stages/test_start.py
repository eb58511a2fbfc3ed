"""Stage `test_start`: the starting policy on the test prompts, once the run has ended."""

from data import store
from pco.stage import Stage
from pco.stages.evaluate import evaluated


def run(stage: Stage) -> store.Manifest:
    """Write the tables `candidates` and `evaluations` of the test prompts."""
    return evaluated(stage, "test", "test")
