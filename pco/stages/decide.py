"""Stage `decide`: the gate. A round is promoted when every rule passes; the table gives the reasons."""

from data import schemas, store
from data.errors import AwaitsAnswer
from pco.evaluation import gate, metrics
from pco.evaluation.decision import Decision
from pco.runs import approvals
from pco.stage import Stage


def run(stage: Stage) -> store.Manifest:
    """Write the `decisions` table, a row per rule; `outputs` hold the decision.

    Raises AwaitsAnswer when a person has to decide and has not decided yet.
    """
    started = stage.launched()
    new, previous, start = (metrics.read(stage.inputs[name].folder) for name in ("evaluation", "previous", "start"))
    results = gate.apply_rules(new, {"previous": previous, "start": start}, stage.config.gate)
    decision = Decision(all(result.passed for result in results), gate.explain(stage.round, results))
    if not decision.promoted and stage.config.gate.otherwise == "ask":
        answer = approvals.read(stage)
        if answer is None:
            raise AwaitsAnswer(f"{decision.reason}. {approvals.how_to(stage.config)}")
        decision = Decision(answer.approve, f"{decision.reason}; {answer.summary()}")
    rows = [{"round": stage.round, **vars(result), "promoted": decision.promoted} for result in results]
    store.write_part(stage.folder, "decisions", 0, schemas.build("decisions", rows), stage.fingerprint)
    return stage.finish(
        unit="rules",
        rows_in=len(rows),
        rows_out=len(rows),
        dropped={},
        started=started,
        outputs=decision.outputs,
    )
