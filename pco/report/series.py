"""The runs of a series beside each other, as a table, a page with the curve over runs, and Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data import files
from data.errors import BadInput
from pco.evaluation import metrics
from pco.evaluation.differences import per_prompt_differences
from pco.evaluation.intervals import paired_interval
from pco.evaluation.rows import Summary
from pco.report import markdown, wording
from pco.report.cells import Cell, Column, Table
from pco.runs import series
from pco.runs.series import Member
from pco.runs.status import RunState
from pco.stage import Stage


@dataclass(frozen=True)
class Gain:
    """By how much the reward on held-out prompts rose from the policy that a run began from to its best one."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class SeriesRun:
    """A run of a series. `start` and `best` sum up the policy it began from and its best one, once both are known."""

    member: Member
    state: str
    start: Summary | None = None
    best: Summary | None = None
    gain: Gain | None = None

    @property
    def number(self) -> int:
        """Its place in the series."""
        return self.member.begun.number


def runs(runs_dir: Path, name: str) -> list[SeriesRun]:
    """The runs of a series, in their order.

    Raises BadInput when there is no such series, CorruptArtifact when a table is not what its manifest says.
    """
    members = series.members(runs_dir, name)
    if not members:
        known = ", ".join(series.names(runs_dir)) or "none"
        raise BadInput(f"{name}: no run of such a series under {runs_dir}. Series there: {known}.")
    return [_run(member, members[i + 1 :]) for i, member in enumerate(members)]


def _run(member: Member, later: Sequence[Member]) -> SeriesRun:
    config, state = member.config, RunState(member.config).outcome
    if not member.is_over:
        is_passed_over = any(other.begun.first_row < member.begun.end_row for other in later)
        return SeriesRun(member, f"{state}, passed over" if is_passed_over else state)
    number = member.best_round
    start = metrics.read(Stage("evaluate", 0, config).folder)
    if not number:
        return SeriesRun(member, state, metrics.summarise(start), metrics.summarise(start))
    best = metrics.read(Stage("evaluate", number, config).folder)
    gain = Gain(*paired_interval(per_prompt_differences(best, start, metric="reward")))
    return SeriesRun(member, state, metrics.summarise(start), metrics.summarise(best), gain)


def table(shown: Sequence[SeriesRun]) -> Table:
    """A row per run."""
    labels = ("Run", "Began", "State", "Begins from", "Rows of the prompts", "Reward", "Gain", "Decision")
    return Table(
        "Reward of the best policy after the run, on the held-out prompts that all runs of the series share; gain: "
        "against the policy that the run began from, with its 95 % interval.",
        [Column(label, number=label in {"Reward", "Gain"}) for label in labels],
        [_row(run) for run in shown],
    )


def _row(run: SeriesRun) -> list[Cell]:
    begun, promoted = run.member.begun, run.member.promoted
    gain = run.gain
    decision = f"{sum(promoted)} of {len(promoted)} rounds promoted" if promoted else wording.ABSENT
    if promoted and not promoted[-1]:
        decision = f"{decision}: {RunState(run.member.config).reasons[-1]}"
    return [
        Cell(run.member.config.run),
        Cell(begun.at.replace("T", " ").removesuffix("+00:00")),
        Cell(run.state, tone="good" if run.state == "finished" else "bad" if "refused" in run.state else ""),
        Cell(series.start_of(begun)),
        Cell(series.rows_of(begun)),
        Cell(wording.decimal(run.best["reward"]) if run.best else wording.ABSENT),
        Cell(f"{wording.signed(gain.mean)} ({wording.signed(gain.low)} to {wording.signed(gain.high)})")
        if gain
        else Cell(wording.ABSENT),
        Cell(decision),
    ]


def headline(shown: Sequence[SeriesRun]) -> str:
    """What came of the series, in a sentence or two."""
    finished = [run for run in shown if run.best is not None]
    better = sum(run.gain is not None for run in finished)
    counted = f"{len(shown)} runs, {len(finished)} finished, {better} with a promoted policy"
    if finished and finished[0].start and finished[-1].best:
        before, after = (wording.decimal(summary["reward"]) for summary in (finished[0].start, finished[-1].best))
        counted = f"{counted}. Reward on held-out prompts: {before} at the start, {after} now"
    passed = [run.member.config.run for run in shown if "passed over" in run.state]
    return f"{counted}. Passed over, as they did not finish: {', '.join(passed)}." if passed else f"{counted}."


def page_path(runs_dir: Path, name: str) -> Path:
    """Where the page of a series lies."""
    return runs_dir / f"series-{name}.html"


def write(runs_dir: Path, name: str) -> Path:
    """Write the page of a series and return its path. Raises as `runs` does."""
    from pco.report import page, plots  # draws plots: heavy to import

    shown = runs(runs_dir, name)
    html = page.template("series.html").render(
        name=name, headline=headline(shown), table=table(shown), plots=plots.series(curves(shown))
    )
    path = page_path(runs_dir, name)
    files.write_text(path, html)
    return path


def as_markdown(runs_dir: Path, name: str) -> str:
    """The same as Markdown. Raises as `runs` does."""
    shown = runs(runs_dir, name)
    return f"# Series {name}\n\n{headline(shown)}\n\n{markdown.table(table(shown))}\n"


def curves(shown: Sequence[SeriesRun]) -> dict[str, list[tuple[int, float, float, float]]]:
    """Reward, and perplexity as a multiple of the first start's, after each finished run: number, value, low, high.

    The series' start has the number 0. Intervals are those of each run's gain; perplexity has none.
    """
    finished = [(run, run.start, run.best) for run in shown if run.start is not None and run.best is not None]
    if not finished:
        return {}
    _, first, _ = finished[0]
    rewards = [(0, first["reward"], first["reward"], first["reward"])]
    perplexities = [(0, 1.0, 1.0, 1.0)]
    for run, start, best in finished:
        gain = run.gain or Gain(0.0, 0.0, 0.0)
        rewards.append((run.number, best["reward"], start["reward"] + gain.low, start["reward"] + gain.high))
        ratio = best["perplexity"] / first["perplexity"]
        perplexities.append((run.number, ratio, ratio, ratio))
    return {"reward": rewards, "perplexity": perplexities}
