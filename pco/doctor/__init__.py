"""`pco doctor`: what can be known of a config before hours are spent on it, told all at once."""

from collections.abc import Callable, Iterator
from functools import partial

from data.errors import BadInput, PCOError
from pco.config.run import RunConfig
from pco.doctor import canary, checks, resources, tokens
from pco.doctor.checks import Inputs
from pco.doctor.finding import Finding, Seen
from pco.evaluation.intervals import detectable_difference
from pco.execution.executor import Executor, LocalExecutor

__all__ = ["Finding", "check", "examine"]

Examination = Callable[[Inputs], Iterator[Seen]]

# They load no weights; the first stage of every run makes them.
_QUICK: dict[str, Examination] = {
    "policy's tokens": tokens.policy,
    "reward's tokens": tokens.reward,
    "tied weights": resources.tied_weights,
    "number formats": resources.number_formats,
    "enough prompts": resources.enough_prompts,
    "disk": resources.disk,
    "memory": resources.memory,
}


def examine(
    config: RunConfig,
    *,
    quick: bool = False,
    executor: Executor = LocalExecutor(),  # noqa: B008  frozen
) -> Iterator[Finding]:
    """Everything that is examined, as it is found; `quick` leaves out what loads weights, which `executor` runs.

    What fails for the reason of an earlier fault is skipped, and so is the canary after any fault.
    """
    inputs, faults = Inputs(config), set[str]()
    checked = {name: _checked(look) for name, look in checks.CHECKS.items()}
    for name, look in (checked | _QUICK).items():
        for finding in _findings(name, look, inputs):
            if finding.told in faults:
                yield Finding(name, "skipped", "waits for the fault above")
                continue
            if finding.verdict == "fault":
                faults.add(finding.told)
            yield finding
    if not quick and faults:
        yield Finding("canary", "skipped", "waits for the faults above")
    elif not quick:
        yield from _findings("canary", partial(canary.examine, executor=executor), inputs)


def _findings(name: str, look: Examination, inputs: Inputs) -> Iterator[Finding]:
    try:
        yield from (Finding(name, *seen) for seen in look(inputs))
    except PCOError as error:
        yield Finding(name, "fault", str(error))


def _checked(look: Callable[[Inputs], str]) -> Examination:
    def seen(inputs: Inputs) -> Iterator[Seen]:
        yield "ok", look(inputs)

    return seen


def check(config: RunConfig) -> tuple[Inputs, list[Finding]]:
    """The checked inputs of a run, and the warnings of the quick examinations.

    Raises BadInput for the first fault.
    """
    inputs = checks.check(config)
    findings = [Finding(name, *seen) for name, look in _QUICK.items() for seen in look(inputs)]
    for finding in findings:
        if finding.verdict == "fault":
            raise BadInput(f"{finding.name}: {finding.told}.")
    return inputs, [finding for finding in findings if finding.verdict == "warning"]


def power(prompts: int) -> str:
    """What an evaluation cannot find, told before it is paid for; a prompt's win rate spreads by 0.5 at most."""
    points = min(100.0, 100 * detectable_difference(0.5, prompts))
    return (
        f"{prompts} held-out prompts: a difference in win rate of less than {points:.0f} points may not be told from "
        "noise (95 % intervals, found four times out of five)"
    )
