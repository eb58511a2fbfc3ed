"""The report of a reward training: one HTML page, and the same numbers as Markdown."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from data import files, store
from pco.config.reward_training import RewardTraining
from pco.report import markdown, wording
from pco.report.cells import Cell, Column, Table
from pco.reward_training.accuracy import MATCHED, Measured, Share, measured
from pco.runs.folder import report_path
from pco.specs import RewardStageName
from pco.stage import Stage


@dataclass(frozen=True)
class RewardReport:
    """What a finished reward training left on disk."""

    config: RewardTraining
    measured: Measured
    log: list[Mapping[str, float]]
    stages: list[store.Manifest]


def read(config: RewardTraining) -> RewardReport:
    """Read a finished training; raises CorruptArtifact when a table is not what its manifest says."""
    names: tuple[RewardStageName, ...] = ("split", "train_reward", "evaluate_reward")
    folders = [Stage(name, 0, config, {}).folder for name in names]
    manifests = [store.read_manifest(folder) for folder in folders]
    tested = store.read_table(folders[2], "reward_tests").to_pylist()
    return RewardReport(
        config,
        measured(tested),
        store.read_table(folders[1], "reward_log").to_pylist(),
        [manifest for manifest in manifests if manifest],
    )


def write(config: RewardTraining) -> Path:
    """Write `<run>/report.html` and return its path."""
    from pco.report import page, plots  # draws plots: heavy to import

    report = read(config)
    path = report_path(config)
    html = page.template("reward.html").render(
        report=report,
        sentences=sentences(report),
        accuracies=accuracies(report),
        work=work(report),
        plots=[plots.calibration(report.measured.calibration), *plots.learning(report.log)],
        config=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
    )
    files.write_text(path, html)
    return path


def as_markdown(config: RewardTraining) -> str:
    """The numbers as Markdown."""
    report = read(config)
    parts = [f"# Reward training {config.run}", *sentences(report)]
    parts += [markdown.table(content) for content in (accuracies(report), work(report))]
    return "\n\n".join(parts) + "\n"


def accuracies(report: RewardReport) -> Table:
    """How often the reward picks the preferred text, beside the rule that the longer one wins."""
    accuracy = report.measured
    rows = {
        "Reward, all pairs": accuracy.reward,
        "Longer wins, all pairs": accuracy.longer,
        "Reward, length-matched": accuracy.matched_reward,
        "Longer wins, length-matched": accuracy.matched_longer,
    }
    return Table(
        "Held-out accuracy; ties count half",
        [
            Column("Rule", number=False),
            Column("Pairs"),
            Column("Prompts"),
            Column("Accuracy", "share of all pairs"),
            Column("By prompt", "mean over prompts of each one's share"),
            Column("95 % interval", "of the mean over prompts"),
        ],
        [[Cell(name), *_shown(share)] for name, share in rows.items()],
    )


def _shown(share: Share | None) -> list[Cell]:
    if share is None:
        return [Cell("0"), *[Cell(wording.ABSENT)] * 4]
    interval = f"{wording.percent(share.low)} to {wording.percent(share.high)}"
    shares = [wording.percent(share.of_pairs), wording.percent(share.mean), interval]
    return [Cell(text) for text in (wording.count(share.pairs), wording.count(share.prompts), *shares)]


def sentences(report: RewardReport) -> list[str]:
    """What else the test measured."""
    accuracy = report.measured
    return [
        f"Length-matched: the longer completion has at most {MATCHED} times the tokens of the shorter.",
        f"Expected calibration error {wording.percent(accuracy.calibration_error)}; correlation of reward with the "
        f"logarithm of length within pairs {wording.decimal(accuracy.follows_length, 2)}.",
    ]


def work(report: RewardReport) -> Table:
    """Time and drops by stage."""
    return Table(
        "What each stage took and left out",
        [Column("Stage", number=False), Column("Rows"), Column("Seconds"), Column("Dropped, by reason", number=False)],
        [
            [
                Cell(manifest.stage),
                Cell(wording.count(manifest.rows_out), manifest.unit),
                Cell(wording.seconds(manifest.seconds)),
                Cell("; ".join(f"{count:,} {why}" for why, count in manifest.dropped.items() if count) or "nothing"),
            ]
            for manifest in report.stages
        ],
    )
