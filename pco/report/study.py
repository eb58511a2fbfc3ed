"""The report of a study: one HTML page, the same numbers as Markdown, CSV and LaTeX."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean

import pyarrow.csv
import yaml

from data import files, store
from data.errors import BadInput
from data.rows import PromptRow
from pco.config.metrics import METRICS, Unit, metric
from pco.config.study import Study
from pco.report import markdown, samples, wording
from pco.report.cells import Cell, Column, Table, Tone
from pco.report.numbers import HeldoutChanges
from pco.runs import study_best, study_results
from pco.runs.study import RunLine, lines
from pco.runs.study_best import Best, Difference
from pco.runs.study_results import Evaluated, RoundCost
from pco.stage import Stage

LEVEL = 0.95
_METHOD = (
    "Differences from {first} are paired: of the same prompt and seed, both policies' means over its completions. "
    "Brackets hold {level} intervals for new prompts and new seeds, which are crossed random effects "
    "(docs/studies.md){alone}."
)


@dataclass(frozen=True)
class StudyReport:
    """All that a report says about a study; read from its runs when it is asked for."""

    study: Study
    level: float = LEVEL

    @cached_property
    def lines(self) -> list[RunLine]:
        """Where each run stands."""
        return lines(self.study)

    @cached_property
    def policies(self) -> list[Evaluated]:
        """Every evaluated policy of every run."""
        return study_results.evaluated(self.study)

    @property
    def measure(self) -> str:
        """What variants are ranked by."""
        return study_best.gate_measure(self.study)

    @property
    def guards(self) -> list[str]:
        """The measures that the first variant's gate watches."""
        guards = self.study.variants[self.study.first].gate.guards
        return [name for name, rule in guards.items() if rule is not None]

    @property
    def measures(self) -> list[str]:
        """Those that the report shows: the gate's first, then as in a run's report."""
        measured = {name for policy in self.policies for name in policy.summary}
        shown = [known.key for known in METRICS if known.shown and not known.key.endswith("_vs_previous")]
        tasks = sorted(name for name in measured if name.startswith("task_"))
        ordered = dict.fromkeys([self.measure, *self.guards, *shown, *tasks])
        return [name for name in ordered if name in measured]

    def of(self, variant: str, number: int | None) -> list[Evaluated]:
        """A variant's policies of a round, or those that its runs keep."""
        return [
            policy
            for policy in self.policies
            if policy.variant == variant and (policy.kept if number is None else policy.round == number)
        ]

    def best(self, measure: str | None = None) -> Best:
        """The best variant by a measure, by default the gate's; raises BadInput when there is nothing to rank."""
        name = measure or self.measure
        return study_best.best(self.study, self.policies, self.lines, measure=name, level=self.level)


def write(study: Study) -> Path:
    """Write `report.html` and `report.md` into the study's folder, from what its runs have finished; the page's path.

    Raises CorruptArtifact when a table is not what its manifest says.
    """
    from pco.report import page, study_plots  # draws plots: heavy to import

    report = StudyReport(study)
    texts = _texts(report)
    shown = [
        name for name in (report.measure, "second_reward", "win_vs_start", *report.guards) if name in report.measures
    ]
    wanted = report.measure
    html = page.template("study.html").render(
        report=report,
        sentences=sentences(report),
        method=method(report),
        runs=runs(report),
        tables=measures(report),
        costs=costs(report),
        curves=study_plots.curves(report.policies, list(dict.fromkeys(shown))),
        trades=study_plots.against_guards(report.policies, wanted, report.guards) if report.policies else [],
        spending=study_plots.against_cost(report.policies, wanted) if report.policies else [],
        texts=[] if texts is None else _groups(*texts),
        config=yaml.safe_dump(
            {name: config.model_dump(mode="json") for name, config in study.variants.items()},
            sort_keys=False,
            allow_unicode=True,
        ),
    )
    path = study.folder / "report.html"
    files.write_text(path, html)
    files.write_text(path.with_suffix(".md"), _as_markdown(report))
    return path


def as_markdown(study: Study) -> str:
    """The numbers as Markdown."""
    return _as_markdown(StudyReport(study))


def _as_markdown(report: StudyReport) -> str:
    said, how = map(markdown.escape, sentences(report)), markdown.escape(method(report))
    tables = [markdown.table(table) for table in (runs(report), *measures(report), costs(report))]
    parts = [f"# Study {report.study.name}", *said, tables[0], how, *tables[1:]]
    return "\n\n".join(parts) + "\n"


def write_csv(study: Study, path: Path) -> None:
    """The table `study_results` as CSV."""
    with files.write_errors(path), files.atomic_path(path) as temporary:
        pyarrow.csv.write_csv(study_results.results(study), temporary)


def write_latex(study: Study, path: Path) -> None:
    """The kept policies as a LaTeX table: a row per variant, a column per measure."""
    files.write_text(path, latex(kept(StudyReport(study))))


def sentences(report: StudyReport) -> list[str]:
    """The result in plain words, and what is missing from it."""
    try:
        said = best_sentences(report.best())
    except BadInput as error:
        said = [str(error)]
    failed = [line for line in report.lines if line.state in {"failed", "stale", "damaged"}]
    return said + [f"{line.run}: {line.state} ({line.note})." for line in failed]


def best_sentences(best: Best) -> list[str]:
    """Which variant is best, by how much, and whether the data decide it."""
    ranked = ", ".join(f"{name} {_number(best.measure, value)}" for name, value in best.means.items())
    highest = [name for name, value in best.means.items() if value == best.means[best.variant]]
    leads = f"{best.variant} has the best mean" if len(highest) == 1 else f"{' and '.join(highest)} have the same mean"
    said = [
        f"{best.variant} is best by {best.measure}."
        if best.is_decided
        else f"The data do not decide which variant is best by {best.measure}; {leads}.",
        f"Means of the policies that the runs keep, over {_seeds(best.seeds)}: {ranked}.",
    ]
    for other, found in best.differences.items():
        interval = f"{_change(best.measure, found.low)} to {_change(best.measure, found.high)}"
        together = f", {wording.percent(best.level, 0)} for all together" if len(best.differences) > 1 else ""
        said.append(
            f"{best.variant} less {other}: {_change(best.measure, found.mean)} (interval {interval}{together}, "
            f"{found.prompts} prompts)."
        )
    if len(best.seeds) == 1:
        said.append("With one seed this says nothing of what another seed would bring.")
    return said + [f"Left out: {why}." for why in best.left_out]


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds"


def runs(report: StudyReport) -> Table:
    """Where every run stands."""
    columns = ["Variant", "Seed", "Run", "State", "Rounds", "Keeps", "Stages made", "Stages shared"]
    return Table(
        "Each run is an ordinary one: `pco report RUN` and all other commands know it. Shared stages were made by an "
        "earlier run of the study.",
        [Column(name, number=name in columns[4:]) for name in columns],
        [
            [
                Cell(line.variant),
                Cell(str(line.seed)),
                Cell(line.run),
                Cell(line.state, line.note, "bad" if line.note else ""),
                Cell(f"{line.decided} of {line.rounds}"),
                Cell(f"round {line.kept}" if line.kept else "start"),
                Cell(str(line.made)),
                Cell(str(line.shared)),
            ]
            for line in report.lines
        ],
    )


def measures(report: StudyReport) -> list[Table]:
    """A table per measure: a row per variant, a column per round and one for the policies that are kept."""
    return [_measure(report, name) for name in report.measures]


def _measure(report: StudyReport, name: str) -> Table:
    numbers = sorted({policy.round for policy in report.policies if name in policy.summary})
    columns = [Column("Variant", number=False)]
    columns += [Column(f"Round {number}" if number else "Start") for number in numbers]
    columns.append(Column("Kept", "the policy promoted last, or the starting one"))
    rows = []
    for variant in report.study.variants:
        cells = [_cell(report, name, variant, number) for number in [*numbers, None]]
        rows.append([Cell(variant), *cells])
    about = metric(name)
    meaning = f": {about.meaning}" if about else ""
    return Table(f"{about.label if about else name}{meaning}", columns, rows)


def method(report: StudyReport) -> str:
    """How the intervals come about."""
    alone = "" if len(report.study.seeds) > 1 else "; with one seed, for new prompts alone"
    return _METHOD.format(first=report.study.first, level=wording.percent(report.level, 0), alone=alone)


def _cell(report: StudyReport, name: str, variant: str, number: int | None) -> Cell:
    """The mean over seeds, and the difference from the first variant."""
    policies, first = report.of(variant, number), report.of(report.study.first, number)
    values = [policy.summary[name] for policy in policies if name in policy.summary]
    if not values:
        return Cell(wording.ABSENT)
    fewer = f"{len(values)} of {len(report.study.seeds)} seeds" if len(values) < len(report.study.seeds) else ""
    found = None
    both = [report.study.first, variant]
    if variant != report.study.first and number != 0 and study_best.have_one_scale(report.study, both, name):
        paired = "drift" if name == "perplexity" else name  # the logarithm, which has a value per text
        found = study_best.difference(policies, first, paired, level=report.level)
    notes = [_difference(name, found) if found else "", fewer]
    return Cell(_number(name, fmean(values)), "; ".join(filter(None, notes)), _tone(name, found))


def _difference(name: str, found: Difference) -> str:
    return f"{_change(name, found.mean)} ({_change(name, found.low)} to {_change(name, found.high)})"


def _tone(name: str, found: Difference | None) -> Tone:
    about = metric(name)
    if found is None or about is None or not found.is_clear or not about.direction:
        return ""
    return "good" if found.mean * about.direction > 0 else "bad"


def _number(name: str, value: float) -> str:
    unit = _unit(name)
    return (
        wording.percent(value)
        if unit == "share"
        else wording.decimal(value, 1 if unit in {"tokens", "perplexity"} else 3)
    )


def _change(name: str, value: float) -> str:
    if name == "perplexity":
        return wording.relative(math.exp(value), 1.0)
    return wording.points(value) if _unit(name) == "share" else wording.signed(value)


def _unit(name: str) -> Unit:
    about = metric(name)
    return about.unit if about else "score"


def kept(report: StudyReport) -> Table:
    """The policies that the runs keep: a row per variant, a column per measure."""
    return Table(
        f"Policies that the runs of the study {report.study.name} keep, means over seeds. {method(report)}",
        [Column("Variant", number=False), *(Column(_label(name)) for name in report.measures)],
        [
            [Cell(variant), *(_cell(report, name, variant, None) for name in report.measures)]
            for variant in report.study.variants
        ],
    )


def _label(name: str) -> str:
    about = metric(name)
    return about.label if about else name


def costs(report: StudyReport) -> Table:
    """What a run of each variant took by itself, mean over its seeds."""
    columns = ["Variant", "Tokens sampled", "Tokens trained on", "Time", "Requests to a judge"]
    return Table(
        "What a run of each variant takes, mean over seeds; stages that runs share count in full for each. Tokens are "
        "those of the candidates and of the completions that were trained on, in all rounds and epochs.",
        [Column(name, number=name != "Variant") for name in columns],
        [[Cell(variant), *_cost_cells(report, variant)] for variant in report.study.variants],
    )


def _cost_cells(report: StudyReport, variant: str) -> list[Cell]:
    totals = []
    for seed in report.study.seeds:
        spent = [policy.cost for policy in report.policies if (policy.variant, policy.seed) == (variant, seed)]
        if spent:
            totals.append(sum(spent, RoundCost()))
    if not totals:
        return [Cell(wording.ABSENT)] * 4
    asked = [total.judge_requests for total in totals if total.judge_requests is not None]
    return [
        Cell(wording.count(round(fmean(total.tokens_sampled for total in totals)))),
        Cell(wording.count(round(fmean(total.tokens_trained for total in totals)))),
        Cell(wording.duration(fmean(total.seconds for total in totals))),
        Cell(wording.count(round(fmean(asked)) if asked else None)),
    ]


def _texts(report: StudyReport) -> tuple[HeldoutChanges, tuple[str, str]] | None:
    """Greedy completions of the first variant and of the best other one, on the same prompts and seed."""
    first = report.of(report.study.first, None)
    others = [name for name in report.study.variants if name != report.study.first]
    about = metric(report.measure)
    direction = about.direction if about else 1
    ranked: list[tuple[float, str]] = []
    for name in others:
        values = [
            policy.summary[report.measure] for policy in report.of(name, None) if report.measure in policy.summary
        ]
        ranked += [(direction * fmean(values), name)] if values else []
    if not ranked or not first:
        return None
    name = max(ranked)[1]
    by_seed = {policy.seed: policy for policy in report.of(name, None)}
    pairs = [(policy, by_seed[policy.seed]) for policy in first if policy.seed in by_seed]
    if not pairs:
        return None
    own, other = pairs[0]
    table = store.read_table(Stage("prepare", 0, own.config).folder, "prompts")
    prompts: list[PromptRow] = table.to_pylist()
    changes = samples.changes(other.round, own.folder, other.folder, {row["prompt_id"]: row for row in prompts})
    return changes, (f"{report.study.first}, seed {own.seed}", f"{name}, seed {other.seed}")


def _groups(changes: HeldoutChanges, labels: tuple[str, str]) -> list[tuple[str, list[object]]]:
    from pco.report import page

    first, other = (label.partition(",")[0] for label in labels)
    return [
        (f"{other} better than {first}", list(page.side_by_side(changes.most_improved, labels))),
        (f"{first} better than {other}", list(page.side_by_side(changes.most_worsened, labels))),
    ]


_LATEX = {
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "±": r"$\pm$",
    "–": "--",
}


def latex(content: Table) -> str:
    """A table as LaTeX with rules of the package `booktabs`; a difference stands under its mean."""

    def escaped(text: str) -> str:
        return "".join(_LATEX.get(mark, mark) for mark in text)

    def cell(content: Cell) -> str:
        if not content.note:
            return escaped(content.text)
        return rf"\shortstack[r]{{{escaped(content.text)}\\ \footnotesize {escaped(content.note)}}}"

    columns = "".join("r" if column.number else "l" for column in content.columns)
    rows = [
        [escaped(column.label) for column in content.columns],
        *[[cell(item) for item in row] for row in content.rows],
    ]
    head, *body = [" & ".join(row) + r" \\" for row in rows]
    return "\n".join(
        [
            rf"% {content.caption}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )
