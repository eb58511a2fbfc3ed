"""What the Prefect server does by itself: it tells of refused rounds, and resumes what crashed."""

from datetime import timedelta
from typing import cast

from prefect.automations import Automation
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.events.actions import CallWebhook, RunDeployment
from prefect.events.schemas.automations import EventTrigger, Posture
from pydantic import SecretStr

from flows.recover import OURS
from flows.rounds import REFUSED

_BLOCK = "pco-refused"
_CRASHED = "pco: a flow run crashed"
_AFTER_CRASH = timedelta(seconds=10)  # the worker reports a crash a second time, and that would overwrite a retry


def call_when_refused(url: str) -> None:
    """Make the automation, or bring it up to date; the server POSTs run, round and reason as JSON to `url`."""
    block = Webhook(method="POST", url=SecretStr(url), allow_private_urls=True).save(_BLOCK, overwrite=True)
    _apply(
        Automation(
            name="pco: a round was refused",
            trigger=EventTrigger(expect={REFUSED}, posture=Posture.Reactive, threshold=1),
            actions=[CallWebhook(block_document_id=block, payload="{{ event.payload | tojson }}")],
        )
    )


def resume_when_crashed(client: SyncPrefectClient, max_attempts: int) -> None:
    """Make the automation, or bring it up to date: the deployment `recover` resumes a flow run that has crashed.

    With 0 attempts it is removed.
    """
    if not max_attempts:
        existing = _existing(_CRASHED)
        if existing is not None:
            existing.delete()
        return
    crashed = EventTrigger(
        expect={"prefect.flow-run.Crashed"},
        match_related={"prefect.resource.role": "flow", "prefect.resource.name": OURS},
        posture=Posture.Reactive,
        threshold=1,
    )
    # A bare "{{ flow_run.id }}" would be turned into JSON, which Prefect 3.7.7 cannot make of an id.
    template = {"__prefect_kind": "jinja", "template": "{{ flow_run.id }}"}
    parameters = {"max_attempts": max_attempts, "crashed": template}
    recover = client.read_deployment_by_name("pco-recover/recover").id
    resume = RunDeployment(deployment_id=recover, parameters=parameters, schedule_after=_AFTER_CRASH)
    _apply(Automation(name=_CRASHED, trigger=crashed, actions=[resume]))


def _apply(automation: Automation) -> None:
    """One that is there keeps its switch as somebody left it in the UI."""
    existing = _existing(automation.name)
    if existing is not None:
        automation.id, automation.enabled = existing.id, existing.enabled
        automation.update()
    else:
        automation.create()


def _existing(name: str) -> Automation | None:
    try:
        return cast(Automation, Automation.read(name=name))
    except ValueError:  # there is none of this name
        return None
