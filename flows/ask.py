"""A round that the gate refused may wait for a person: the run is suspended, and its form in the UI asks."""

from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Any

from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import deployment
from pydantic import Field, ValidationError

from data.errors import AwaitsAnswer
from data.store import Manifest
from pco.runs import approvals
from pco.runs.approvals import Answer
from pco.stage import Stage


class AnswerForm(RunInput):
    """What is asked of a person, as the form that Prefect shows."""

    approve: bool = Field(description="Promote the round all the same; else the run ends with the best policy so far.")
    comment: str = Field("", description="Why; it is kept with the round's decision.")


def asking(run_stage: Callable[[Stage[Any]], Manifest | AwaitsAnswer]) -> Callable[[Stage[Any]], Manifest]:
    """`run_stage`, but a decision that awaits a person suspends the flow run until there is an answer.

    Only the run of a deployment can be suspended: a process can be started again for it. Any other ends with
    AwaitsAnswer, which says how to answer.
    """

    def run_or_ask(stage: Stage[Any]) -> Manifest:
        result = run_stage(stage)
        if isinstance(result, AwaitsAnswer) and deployment.id:
            approvals.write(stage, _asked(stage, str(result)))
            result = run_stage(stage)
        if isinstance(result, AwaitsAnswer):
            raise result
        return result

    return run_or_ask


def _asked(stage: Stage, why: str) -> Answer:
    """The form's answer. Unless there is one this does not return: the process ends, and is started anew for it."""
    form = AnswerForm.with_initial_data(description=f"**{stage.title}**: {why}", comment="")
    for time_asked in count(1):
        key = f"round-{stage.round}-{time_asked}"
        # A question whose time ran out has no answer when the run is retried: it is asked anew.
        with suppress(ValidationError):
            answer = suspend_flow_run(form, timeout=stage.config.gate.answer_within_s, key=key)
            break
    return Answer(answer.approve, answer.comment)
