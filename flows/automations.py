"""What the Prefect server does by itself: it calls an address when the gate has refused a round."""

from typing import cast

from prefect.automations import Automation
from prefect.blocks.webhook import Webhook
from prefect.events.actions import CallWebhook
from prefect.events.schemas.automations import EventTrigger, Posture
from pydantic import SecretStr

from flows.rounds import REFUSED

_NAME = "pco: a round was refused"
_BLOCK = "pco-refused"


def call_when_refused(url: str) -> None:
    """Make the automation, or bring it up to date; the server POSTs run, round and reason as JSON to `url`."""
    block = Webhook(method="POST", url=SecretStr(url), allow_private_urls=True).save(_BLOCK, overwrite=True)
    wanted = Automation(
        name=_NAME,
        trigger=EventTrigger(expect={REFUSED}, posture=Posture.Reactive, threshold=1),
        actions=[CallWebhook(block_document_id=block, payload="{{ event.payload | tojson }}")],
    )
    try:
        wanted.id = cast(Automation, Automation.read(name=_NAME)).id
        wanted.update()
    except ValueError:  # there is none of this name
        wanted.create()
