"""What `flows/prefect.yaml` lists, registered on a Prefect server: the work pool, the deployments, their schedules."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import httpx
import yaml
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, WorkPool
from prefect.client.schemas.schedules import SCHEDULE_TYPES
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.flows import load_flow_from_entrypoint
from prefect.settings import PREFECT_API_URL
from prefect.types.entrypoint import EntrypointType
from pydantic import TypeAdapter

from data.errors import BadInput

LISTED = Path(__file__).with_name("prefect.yaml")
_ASK_EVERY_S = 1.0


@contextmanager
def server(wait_s: float = 0.0) -> Iterator[SyncPrefectClient]:
    """A client of the server that `PREFECT_API_URL` names; waits so long for it to answer.

    Raises BadInput when none is named, or none answers, then and later.
    """
    url = PREFECT_API_URL.value()
    if not url:
        raise BadInput("PREFECT_API_URL: not set. Set it to your Prefect server: http://HOST:4200/api")
    try:
        with get_client(sync_client=True) as client:
            deadline = time.monotonic() + wait_s
            while (error := client.api_healthcheck()) is not None:
                if time.monotonic() >= deadline:
                    raise BadInput(
                        f"{url}: no answer from this Prefect server ({error}). Is PREFECT_API_URL right, and the "
                        "server up? (`prefect server start`)"
                    )
                time.sleep(_ASK_EVERY_S)
            yield client
    except httpx.HTTPError as error:
        raise BadInput(f"{url}: this Prefect server refused or fell silent ({error}).") from None


def register(client: SyncPrefectClient, pool_name: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Register all deployments on a work pool, made if missing; yields the full name and the id of each.

    Their runs start in `folder`, if the pool is one of processes. Schedules that are on the server stay as they
    are there, but for parameters that were lost.
    """
    pool = _pool(client, pool_name)
    for raw in yaml.safe_load(LISTED.read_text(encoding="utf-8"))["deployments"]:
        deployment = _deployment(raw, pool, folder)
        schedules = [_schedule(schedule) for schedule in raw.get("schedules", [])]
        yield deployment.full_name, _applied(client, deployment, schedules)


def _pool(client: SyncPrefectClient, name: str) -> WorkPool:
    try:
        return client.read_work_pool(name)
    except ObjectNotFound:
        try:
            return client.create_work_pool(WorkPoolCreate(name=name, type="process"))
        except ObjectAlreadyExists:  # made by someone else just now
            return client.read_work_pool(name)


def _deployment(raw: dict[str, Any], pool: WorkPool, folder: Path) -> RunnerDeployment:
    flow: Flow[..., Any] = load_flow_from_entrypoint(raw["entrypoint"])
    local = pool.type == "process"
    maybe_awaited = flow.to_deployment(
        name=raw["name"],
        description=raw["description"],
        tags=raw["tags"],
        parameters=raw.get("parameters", {}),
        concurrency_limit=ConcurrencyLimitConfig(**raw["concurrency_limit"]),
        entrypoint_type=EntrypointType.MODULE_PATH,  # the package is installed where the worker runs
        work_pool_name=pool.name,
        job_variables=raw["work_pool"]["job_variables"] | ({"working_dir": str(folder)} if local else {}),
    )
    deployment = cast(
        RunnerDeployment, maybe_awaited
    )  # its type says that it may be a coroutine: only in an async function
    # Prefect would name the flow's own module, and import it from the folder in which the flow runs if that has one.
    deployment.entrypoint = raw["entrypoint"]
    return deployment


def _schedule(raw: dict[str, Any]) -> DeploymentScheduleCreate:
    settings = {key: raw[key] for key in ("slug", "active", "parameters") if key in raw}
    rule = {key: value for key, value in raw.items() if key not in settings}
    return DeploymentScheduleCreate(schedule=TypeAdapter(SCHEDULE_TYPES).validate_python(rule), **settings)


def _applied(client: SyncPrefectClient, deployment: RunnerDeployment, schedules: list[DeploymentScheduleCreate]) -> str:
    deployment_id = cast(UUID, deployment.apply())
    on_server = {schedule.slug: schedule for schedule in client.read_deployment_schedules(deployment_id)}
    for wanted in schedules:
        existing = on_server.get(wanted.slug)
        if existing is None:
            client.create_deployment_schedules(deployment_id, [wanted])
        elif wanted.parameters and not existing.parameters:  # Prefect 3.7.7 loses them when a schedule is switched on
            client.delete_deployment_schedule(deployment_id, existing.id)
            kept = {"schedule": existing.schedule, "active": existing.active}
            client.create_deployment_schedules(deployment_id, [wanted.model_copy(update=kept)])
    return str(deployment_id)
