"""What every command that makes rounds does: look at the folder first, then run, then say what came of it."""

from contextlib import nullcontext

from flows import private_server
from flows.console import console, say
from pco import rounds
from pco.config.file import OF_RUN
from pco.config.run import RunConfig
from pco.evaluation import gate
from pco.runs import series
from pco.runs.folder import BEST, check_same, read_config, report_path
from pco.runs.status import RunState
from pco.specs import stages_of


def run(config: RunConfig) -> None:
    """Run all rounds, or those that are missing, and say what the gate decided and where the results lie."""
    if not is_over(config) and (skipped := _run(config)):
        say(skipped)
        return
    if config.series is not None:
        config = read_config(config.folder)  # with what it came to when it began
    for reason in RunState(config).reasons:
        say(reason)
    if config.prompts.has_test:
        _say_test(config)
    if (best := config.folder / BEST).exists():
        say(f"Best policy: {best} ({best.resolve()})")
    say(f"Report: {report_path(config)}")


def _say_test(config: RunConfig) -> None:
    from pco.report import gather, wording

    test = gather.final_test_of(config)
    for line in (wording.test_result(config, test), test.note if test else ""):
        if line:
            say(f"{line[0].upper()}{line[1:]}.")


def dry_run(config: RunConfig) -> None:
    """Check config, model, prompts and environment; say what would run."""
    from pco import doctor

    private_server.check()
    if config.series is not None and config.series.begun is None:
        begun = series.plan(config, config.series).begun
        say(
            f"Run {begun.number} of the series {config.series.name} would begin from {series.start_of(begun)}, with "
            f"rows {series.rows_of(begun)} of {begun.train}. Checked below: all rows, and the policy of the first run."
        )
    inputs, warnings = doctor.check(config)
    for line in inputs.told():
        say(f"{line}.")
    say(f"Checked: {inputs.summary()}.")
    say(f"{doctor.power(len(inputs.heldout))}.")
    if promise := gate.promise(config.gate, config.rounds):
        say(promise)
    if plan := rounds.plan(config):
        say(plan)
    for warning in warnings:
        say(f"Warning: {warning.name}: {warning.message}.")
    check_same(config)
    stages = ", ".join(stages_of(config, 1))
    ends = ", then the test" if config.prompts.has_test else ""
    say(f"Would run {config.rounds} round(s) ({stages}){ends} into {config.folder}.")


def is_over(config: RunConfig) -> bool:
    """Whether the folder says that nothing is left to do: no server and no engine starts to find that."""
    if not (config.folder / OF_RUN).exists():
        return False
    check_same(config)
    return report_path(config).exists() and RunState(config).is_finished


def _run(config: RunConfig) -> str:
    """Run the flow; returns why a run of a series did not begin, or nothing."""
    in_terminal = console.is_terminal
    private_server.begin(in_terminal)
    from flows.rounds import SKIPPED, run_rounds
    from tasks import views

    console.print(
        f"Run [bold]{config.run}[/]: {config.rounds} round(s) into {config.folder}", soft_wrap=True, highlight=False
    )
    shown = views.shown_in(views.Terminal(console)) if in_terminal else nullcontext()
    with shown:
        state = run_rounds(config, return_state=True)
    state.result()  # raises what the flow raised
    return str(state.message) if state.name == SKIPPED else ""
