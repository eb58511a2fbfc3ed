"""Stage `test`: the best policy on the test prompts, once the run has ended, beside the starting policy."""

from data import schemas, store
from pco.evaluation import looks, metrics, tested
from pco.stage import Stage
from pco.stages.evaluate import evaluated


def run(stage: Stage) -> store.Manifest:
    """Write the tables `candidates` and `evaluations` of the test prompts, and `tests`, the differences.

    The look at the test set is counted before anything is sampled.
    """
    looks.record(stage)

    def compare() -> None:
        start = metrics.read(stage.inputs["start"].folder)
        best = store.read_parts(stage.folder, "evaluations", stage.fingerprint).to_pylist()
        rows = schemas.build("tests", tested.differences(start, metrics.with_best_of_n(best)))
        store.write_part(stage.folder, "tests", 0, rows, stage.fingerprint)

    return evaluated(stage, "test", "test", write_more=compare)
