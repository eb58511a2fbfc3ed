"""`pco deploy`: the deployments of `flows/prefect.yaml` on a Prefect server, and what to click then."""

from pathlib import Path
from typing import Annotated

import typer

from flows.console import clear_errors, say


def deploy(
    pool: Annotated[str, typer.Option(help="Work pool; if it is missing, one of processes is made.")] = "pco",
    folder: Annotated[
        Path, typer.Option(help="Folder on the worker's machine that relative paths of runs start from.")
    ] = Path(),
    wait_for_server: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Wait so long for the server to answer.")
    ] = 0.0,
    webhook: Annotated[
        str | None, typer.Option(metavar="URL", help="The server calls it when a round is refused (POST, JSON).")
    ] = None,
    resume_crashed: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="ATTEMPTS",
            help="The server resumes what crashed, up to so many starts of a run; 0: no more.",
        ),
    ] = None,
) -> None:
    """Register work pool and deployments of `flows/prefect.yaml` on the server that `PREFECT_API_URL` names.

    Safe to repeat: deployments are brought up to date, schedules that are on the server stay as they are there.

    Example: `PREFECT_API_URL=http://127.0.0.1:4200/api pco deploy`
    """
    with clear_errors("The same command registers what is missing."):
        from prefect.settings import PREFECT_UI_URL

        from flows import automations, deployments

        with deployments.server(wait_for_server) as client:
            for name, deployment_id in deployments.register(client, pool, folder.resolve()):
                say(f"{name}: {PREFECT_UI_URL.value()}/deployments/deployment/{deployment_id}")
            if webhook is not None:
                automations.call_when_refused(webhook)
            if resume_crashed is not None:
                automations.resume_when_crashed(client, resume_crashed)
        say(f"Start a worker: prefect worker start --pool {pool} --type process")
        say("Then open a deployment and choose Run > Custom run: the form.")
