"""A study as a Prefect flow: its runs as flows within it, so many at a time, then its tables and its report."""

import re
import threading
from contextvars import copy_context
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Annotated

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from pydantic import Field

from data.errors import PCOError
from flows import running
from flows.console import console
from flows.form import RequiredText, sets
from flows.holding import holding
from flows.recover import STUDY_FLOW
from flows.rounds import run_rounds
from pco.config.study import NAME, Study, load
from pco.runs import study as studies
from pco.runs import study_results
from tasks import views
from tasks.stages import shown_if_possible

QUICK = "package:presets/study-quick.yaml"
StudyName = Annotated[str, Field(pattern=NAME)]
Run = tuple[str, int]  # variant and seed
_LOOK_EVERY_S = 1.0  # whether a run may share all that it will ever share


@flow(name=STUDY_FLOW, flow_run_name="{study.name}", persist_result=False, validate_parameters=True)
def run_study(study: Study) -> str:
    """Make all runs of a study, or those that are missing; returns the report's path.

    A run that fails does not stop the others. The same call goes on with a study that died.
    """
    return work(study)


@flow(name=STUDY_FLOW, flow_run_name="{study}", persist_result=False)
def make_study(
    study: StudyName,
    config: RequiredText = QUICK,
    max_concurrent: Annotated[int, Field(ge=1)] = 1,
    overrides: str = "",
    runs_dir: str = "runs",
) -> str:
    """Make the runs of a study: variants of one config, each with several seeds. The same name again goes on with it.

    Args:
        study: Name of the study; its runs are named STUDY-VARIANT-sSEED.
        config: YAML file of the study on the worker's machine: its base config, variants and seeds.
        max_concurrent: So many runs at a time.
        overrides: Changes of the base config as KEY=VALUE, one a line, e.g. rounds=1; variants come after them.
        runs_dir: Folder that holds all runs, from the folder that `pco deploy` named.

    """
    changes = sets({"runs_dir": runs_dir}, overrides)
    return work(load(Path(config), changes, name=study, at_a_time=max_concurrent))


def work(study: Study) -> str:
    """The body of every flow that makes a study.

    Raises PCOError, at the end, that names the runs that failed.
    """
    studies.check_policies_are_kept(study)
    with holding(study):
        failures = _in_order(study) if study.max_concurrent == 1 else _several(study)
        path = _publish(study)
    if failures:
        listed = "\n".join(f"  {study.config(*run).run}: {why}" for run, why in failures.items())
        raise PCOError(
            f"{study.name}: {len(failures)} of {len(study.runs)} runs failed. The others are in {path}; the same "
            f"command tries these again:\n{listed}"
        )
    return str(path)


def _in_order(study: Study) -> dict[Run, str]:
    """One run after the other, in this thread: an interruption reaches the one that is at work."""
    outcomes = {run: _made(study, run) for run in study.runs}
    return {run: why for run, why in outcomes.items() if why}


def _several(study: Study) -> dict[Run, str]:
    """Several runs at a time. A run waits until those that it shares work with have finished that work.

    Their threads are daemons: a process that is told to end ends, and the stages' processes with it.
    """
    ended: SimpleQueue[tuple[Run, str]] = SimpleQueue()

    def make(run: Run) -> None:
        why = "its thread ended"
        try:
            why = _made(study, run)
        finally:  # whatever it is, the study would wait for it for ever
            ended.put((run, why))

    waiting, busy, failures = list(study.runs), list[Run](), dict[Run, str]()
    while waiting or busy:
        for run in list(waiting):
            if len(busy) < study.max_concurrent and _may_begin(study, run, {*waiting, *busy}):
                waiting.remove(run)
                busy.append(run)
                threading.Thread(target=copy_context().run, args=(make, run), daemon=True).start()
        try:
            run, why = ended.get(timeout=_LOOK_EVERY_S)
        except Empty:
            continue
        busy.remove(run)
        failures |= {run: why} if why else {}
    return failures


def _may_begin(study: Study, run: Run, unfinished: set[Run]) -> bool:
    origin = studies.origin_of(study, *run)
    if origin is None or origin.run not in {study.config(*other).run for other in unfinished}:
        return True
    try:
        return studies.is_ready(study, *run)
    except PCOError:  # it is told once that run is at its turn
        return False


def _made(study: Study, run: Run) -> str:
    """Make a run, or find that it is over; why it failed, if it did."""
    config = study.config(*run)
    try:
        studies.begin(study, *run)
        if not running.is_over(config):
            if isinstance(views.current(), views.Terminal):
                console.print(f"Run [bold]{config.run}[/]", highlight=False)
            run_rounds(config)
    except Exception as error:  # whatever it is: the other runs go on
        why = str(error).partition("\n")[0] or type(error).__name__
        get_run_logger().error("%s failed: %s", config.run, error, exc_info=not isinstance(error, PCOError))
        return why
    return ""


def _publish(study: Study) -> Path:
    from pco.report import study as study_report

    path = study_report.write(study)
    study_results.write(study)
    with shown_if_possible("the study's report"):
        key = re.sub(r"[^a-z0-9]+", "-", f"study-{study.name}".lower()).strip("-")
        create_markdown_artifact(study_report.as_markdown(study), key=key, description=f"Report: {path}")
    return path
