"""Tables about the run itself: its time, what is missing, the machines and packages that made it."""

from collections.abc import Iterable

from data.store import Manifest
from pco.report import wording
from pco.report.cells import Cell, Column, Table
from pco.report.numbers import RunReport, StageReport, StageTime


def time_split(report: RunReport) -> Table:
    """The whole wall clock by what it was spent on."""
    timings = report.timings
    parts = {
        "Sampling": sum(stage.work_s for stage in timings.stages if stage.name != "train"),
        "Training steps": sum(stage.work_s for stage in timings.stages if stage.name == "train"),
        "Engine start": sum(stage.engine_start_s for stage in timings.stages),
        "Rest of the stages": sum(stage.rest_s for stage in timings.stages),
        "Outside of the stages": timings.outside_s,
    }
    meanings = {
        "Engine start": "vLLM loading the policy",
        "Rest of the stages": "loading models for training, scoring, perplexity, reading and writing",
        "Outside of the stages": "starting processes and importing libraries, scheduling, pauses of an interrupted run",
    }
    return Table(
        f"Of {wording.duration(timings.wall_s)} from the first stage's begin to the last finished stage's end.",
        [Column("Spent on", number=False), Column("Seconds"), Column("Share of the total")],
        [
            [Cell(name, meanings.get(name, "")), Cell(wording.seconds(spent)), Cell(_share(spent, timings.wall_s))]
            for name, spent in parts.items()
        ],
    )


def stage_times(report: RunReport, number: int | None = None) -> Table:
    """Seconds and tokens per second of every finished stage, or of one round's."""
    timings = report.timings
    return Table(
        "Finished stages. Tokens are sampled ones, or in training the pairs' completion tokens. Of a resumed stage "
        "only its last process is counted.",
        [
            Column("Round"),
            Column("Stage", number=False),
            Column("Seconds"),
            Column("Share", "of the run's wall clock"),
            Column("Engine start (s)", "vLLM loading the policy"),
            Column("Sampling or training (s)"),
            Column("Rest (s)", "loading, scoring, saving"),
            Column("Tokens"),
            Column("Tokens per second"),
        ],
        [_stage_row(stage, timings.wall_s) for stage in timings.stages if number in (None, stage.round)],
    )


def _stage_row(stage: StageTime, wall_s: float) -> list[Cell]:
    return [
        Cell(str(stage.round) if stage.round else "start"),
        Cell(stage.name),
        Cell(wording.seconds(stage.seconds)),
        Cell(_share(stage.seconds, wall_s)),
        Cell(_if_any(stage.engine_start_s)),
        Cell(_if_any(stage.work_s)),
        Cell(wording.seconds(stage.rest_s)),
        Cell(wording.count(stage.tokens or None)),
        Cell(wording.ABSENT if stage.tokens_per_s is None else wording.decimal(stage.tokens_per_s, 0)),
    ]


def _if_any(spent_s: float) -> str:
    return wording.seconds(spent_s) if spent_s else wording.ABSENT


def _share(part: float, whole: float) -> str:
    return wording.percent(part / whole) if whole else wording.ABSENT


def missing(report: RunReport) -> Table:
    """The stages that the config asks for and that are not done."""
    return Table(
        "Stages that are not finished. Begun: at work right now, or interrupted; what it committed is kept, and "
        "resuming the run goes on from there. Not run: the gate stopped the run before.",
        [
            Column("Round"),
            Column("Stage", number=False),
            Column("State", number=False),
            Column("Committed", "completions on disk already"),
        ],
        [_missing_row(stage) for stage in report.stages if stage.status != "done"],
    )


def _missing_row(stage: StageReport) -> list[Cell]:
    round_name = str(stage.round) if stage.round else "start"
    return [Cell(round_name), Cell(stage.name), Cell(stage.status), Cell(wording.count(stage.committed or None))]


def origins(report: RunReport) -> Table:
    """What stands for each finished stage's result, and where it was made."""
    return Table(
        "A fingerprint stands for a stage's settings and inputs, a policy's digest for its files: equal ones mean "
        "equal results.",
        [
            Column("Round"),
            Column("Stage", number=False),
            Column("Fingerprint", number=False),
            Column("Policy digest", "of the policy that the stage used, or trained", number=False),
            Column("Host", number=False),
            Column("Finished", number=False),
        ],
        [_origin_row(stage, manifest) for stage, manifest in _done(report.stages)],
    )


def _origin_row(stage: StageReport, manifest: Manifest) -> list[Cell]:
    return [
        Cell(str(stage.round) if stage.round else "start"),
        Cell(stage.name),
        Cell(manifest.fingerprint),
        Cell(_policy(manifest)),
        Cell(manifest.host),
        Cell(wording.moment(manifest.finished)),
    ]


def _policy(manifest: Manifest) -> str:
    used, trained = manifest.inputs.get("policy"), manifest.outputs.get("policy")
    return " → ".join(digest for digest in (used, trained) if digest) or wording.ABSENT


def _done(stages: Iterable[StageReport]) -> list[tuple[StageReport, Manifest]]:
    return [(stage, stage.manifest) for stage in stages if stage.manifest is not None]


def versions(report: RunReport) -> Table:
    """The packages that made the run; more than one version of one means that the run was resumed with another."""
    versions_of: dict[str, list[str]] = {}
    for _, manifest in _done(report.stages):
        for package, version in manifest.versions.items():
            known = versions_of.setdefault(package, [])
            if version not in known:
                known.append(version)
    return Table(
        "Packages, as installed where the stages ran.",
        [Column("Package", number=False), Column("Version", number=False)],
        [[Cell(package), Cell(", ".join(known))] for package, known in versions_of.items()],
    )


def total_time(report: RunReport) -> Cell:
    """The wall clock and the share of it outside of the stages."""
    timings = report.timings
    return Cell(wording.duration(timings.wall_s), f"{_share(timings.outside_s, timings.wall_s)} outside of the stages")
