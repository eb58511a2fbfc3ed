"""`pco doctor`: examine a config before hours are spent on it, and report all findings at once."""

from collections.abc import Callable, Iterator
from functools import partial

from data.errors import BadInput, PCOError
from pco.config.run import RunConfig
from pco.doctor import canary, checks, conversations, environments, resources, sources, tokens
from pco.doctor.finding import Finding, Result
from pco.doctor.inputs import Inputs
from pco.evaluation.intervals import detectable_difference
from pco.execution.executor import Executor, LocalExecutor

__all__ = ["Finding", "check", "examine"]

Examination = Callable[[Inputs], Iterator[Result]]

# They load no weights. The first stage of every run makes them, too.
_QUICK: dict[str, Examination] = {
    "environments": environments.examine,
    "sources": sources.examine,
    "policy's tokens": tokens.policy,
    "reward's tokens": tokens.reward,
    "conversations": conversations.policy,
    "policy's answers": conversations.answers,
    "reward's conversations": conversations.reward,
    "tied weights": resources.tied_weights,
    "number formats": resources.number_formats,
    "enough prompts": resources.enough_prompts,
    "workers": resources.workers,
    "disk": resources.disk,
    "memory": resources.memory,
}


def examine(
    config: RunConfig,
    *,
    quick: bool = False,
    executor: Executor = LocalExecutor(),  # noqa: B008  frozen
) -> Iterator[Finding]:
    """The findings, one after the other. `quick` leaves out what loads weights; `executor` runs that.

    An examination that fails with the message of an earlier fault is skipped, and so is the canary after any fault.
    """
    inputs, faults = Inputs(config), set[str]()
    checked = {name: _examination(check) for name, check in checks.CHECKS.items()}
    for name, examination in (checked | _QUICK).items():
        for finding in _findings(name, examination, inputs):
            if finding.message in faults:
                yield Finding(name, "skipped", "waits for the fault above")
                continue
            if finding.status == "fault":
                faults.add(finding.message)
            yield finding
    if not quick and faults:
        yield Finding("canary", "skipped", "waits for the faults above")
    elif not quick:
        yield from _findings("canary", partial(canary.examine, executor=executor), inputs)


def _findings(name: str, examination: Examination, inputs: Inputs) -> Iterator[Finding]:
    try:
        yield from (Finding(name, *result) for result in examination(inputs))
    except PCOError as error:
        yield Finding(name, "fault", str(error))


def _examination(check: Callable[[Inputs], str]) -> Examination:
    def results(inputs: Inputs) -> Iterator[Result]:
        yield "ok", check(inputs)

    return results


def check(config: RunConfig) -> tuple[Inputs, list[Finding]]:
    """The checked inputs of a run, and the warnings of the quick examinations.

    Raises BadInput for the first fault.
    """
    inputs = checks.check(config)
    findings: list[Finding] = []
    for name, examination in _QUICK.items():
        findings += [Finding(name, *result) for result in examination(inputs)]
    for finding in findings:
        if finding.status == "fault":
            raise BadInput(f"{finding.name}: {finding.message}.")
    return inputs, [finding for finding in findings if finding.status == "warning"]


def power(prompts: int) -> str:
    """The difference that an evaluation can detect. The standard deviation of a prompt's win rate is at most 0.5."""
    points = min(100.0, 100 * detectable_difference(0.5, prompts))
    return (
        f"{prompts} held-out prompts: a difference in win rate of less than {points:.0f} points may not be "
        "distinguishable from noise (95 % intervals, detected four times out of five)"
    )
