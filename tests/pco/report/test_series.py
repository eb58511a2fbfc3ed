"""The table, the page and the Markdown of a series of runs."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from data.errors import BadInput
from flows.cli import app
from pco.config.run import RunConfig
from pco.config.series import Begun, Series
from pco.report import series
from pco.runs.folder import write_config
from tests import builders
from tests.pco.report.report_runs import make_run


def run_of(folder: Path, name: str, number: int, rows: tuple[int, int], **made: Any) -> RunConfig:
    begun = Begun(
        by=name,
        number=number,
        at=f"2026-01-0{number}T22:00:00+00:00",
        model="some/model",
        revision=None,
        train="/data/prompts.jsonl",
        from_run="first" if number > 1 else None,
        from_round=2 if number > 1 else 0,
        policy="",
        first_row=rows[0],
        end_row=rows[1],
        end_byte=1,
        digest="",
        window="",
    )
    config = builders.config(folder, run=name, rounds=2)
    config = config.model_copy(update={"series": Series(name="nightly", begun=begun)})
    write_config(config, config.folder)
    return make_run(config, **made)


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    run_of(tmp_path, "first", 1, (0, 500))
    run_of(tmp_path, "failed", 2, (500, 1000), rounds=1, last="train")
    run_of(tmp_path, "last", 3, (500, 1000), rounds=1, refuse=1)
    return tmp_path / "runs"


def test_a_row_tells_when_a_run_began_from_what_on_which_prompts_and_what_came_of_it(runs_dir: Path) -> None:
    first, failed, last = ([cell.text for cell in row] for row in series.table(series.runs(runs_dir, "nightly")).rows)
    assert first[:5] == ["first", "2026-01-01 22:00:00", "finished", "some/model", "1 to 500"]
    assert first[6].startswith("+") and first[7] == "2 of 2 rounds promoted"
    assert failed[:5] == ["failed", "2026-01-02 22:00:00", "unfinished, passed over", "first, round 2", "501 to 1,000"]
    assert failed[5:7] == ["–", "–"]
    assert last[2] == "refused by the gate" and last[6] == "–" and last[7].startswith("0 of 1 rounds promoted: round 1")


def test_the_curve_begins_at_the_series_start_and_has_a_point_for_each_run_that_finished(runs_dir: Path) -> None:
    shown = series.runs(runs_dir, "nightly")
    curves = series.curves(shown)
    assert [point[0] for point in curves["reward"]] == [0, 1, 3]
    assert all(low <= value <= high for _, value, low, high in curves["reward"])
    assert curves["perplexity"][0][1] == 1
    assert series.headline(shown).startswith(
        "3 runs, 2 finished, 1 with a promoted policy. Reward on held-out prompts: "
    )
    assert series.headline(shown).endswith("Passed over, as they did not finish: failed.")


def test_the_command_shows_all_series_and_one_and_writes_its_page(runs_dir: Path) -> None:
    runner = CliRunner(env={"COLUMNS": "300", "PCO_RUNS_DIR": str(runs_dir)})
    overview = runner.invoke(app, ["series"])
    assert overview.exit_code == 0, overview.output
    assert "nightly" in overview.output and "1,000" in overview.output
    one = runner.invoke(app, ["series", "nightly"])
    assert one.exit_code == 0, one.output
    assert "first, round 2" in one.output
    page = (runs_dir / "series-nightly.html").read_text()
    assert page.count("<svg") == 2
    assert "first, round 2" in page and "first, round 2" in series.as_markdown(runs_dir, "nightly")


def test_a_series_that_is_not_there_is_told_with_those_that_are(runs_dir: Path) -> None:
    with pytest.raises(BadInput, match=r"weekly: no run of such a series .* Series there: nightly"):
        series.runs(runs_dir, "weekly")
