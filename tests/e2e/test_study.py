"""`pco study run` with two variants: two runs at a time, killed in the middle, then one at a time.

The variants differ in their gates, so that all the engines' work is shared: what it costs is one run's. Seeds and
variants that train are in tests/pco/runs/test_study.py and tests/flows/test_studies.py.
"""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from flows.cli import app
from pco.execution.launcher import ATTEMPT
from pco.runs import study as studies
from pco.runs.study_results import RESULTS, results
from tests.e2e.conftest import Case, stage_processes
from tests.points import PATIENCE_S, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(6000)]

# What the second variant's gate asks for no training of one epoch brings, so its run keeps the starting policy.
VARIANTS = {"lenient": {}, "strict": {"gate.require.reward.min_change": 10.0}}
STUDY = {"study": "s", "base": "config.yaml", "variants": VARIANTS, "seeds": [0]}


def start(case: Case, study: Path, at_a_time: int) -> subprocess.Popen[str]:
    """Start the study; its output goes to a file."""
    with case.output.open("w") as output:
        command = case.command("study", "run", str(study), "--max-concurrent", str(at_a_time))
        return subprocess.Popen(command, env=case.environment, stdout=output, stderr=subprocess.STDOUT, text=True)


def test_a_study_killed_in_the_middle_goes_on_and_makes_shared_work_once(
    make_case: Callable[..., Case],
) -> None:
    case = make_case(rounds=1, train__epochs=1, evaluate={"samples": 1}, generate__max_tokens=12)
    file, runs = case.file.with_name("study.yaml"), case.folder.parent
    file.write_text(yaml.safe_dump(STUDY, sort_keys=False))
    hold = case.points.hold(runs / "s-strict-s0" / "round-01" / "decision" / "manifest.json")
    process = start(case, file, 2)

    def check() -> None:
        assert process.poll() is None, case.output.read_text()

    hold.wait(check)
    process.kill()
    process.wait()
    until(lambda: not stage_processes(runs), "the end of the stages' processes whose parent was killed")
    hold.release()

    assert start(case, file, 1).wait(timeout=PATIENCE_S) == 0, case.output.read_text()
    study = studies.read("s", runs)
    lines = {line.variant: line for line in studies.lines(study)}
    assert {name: (line.state, line.kept) for name, line in lines.items()} == {
        "lenient": ("finished", 1),
        "strict": ("refused by the gate", 0),
    }
    assert {name: (line.made, line.shared) for name, line in lines.items()} == {"lenient": (8, 0), "strict": (1, 7)}
    attempts = [log for log in runs.glob("s-*/round-*/logs/*.log") if log.read_text().count(ATTEMPT) > 1]
    assert attempts == [runs / "s-strict-s0" / "round-01" / "logs" / "decide.log"], "what was made is made once"
    table = pq.read_table(study.folder / RESULTS)
    assert table.equals(results(study))
    rows = table.to_pylist()
    assert {(row["variant"], row["round"]) for row in rows} == {
        (name, number) for name in VARIANTS for number in (0, 1)
    }
    assert all(row["tokens_sampled"] and row["tokens_trained"] for row in rows if row["round"])
    assert " less " in (study.folder / "report.html").read_text()
    before = (study.folder / RESULTS).stat().st_mtime_ns
    for command in (["best", "s", "--runs-dir", str(runs)], ["run", str(file)]):  # neither starts a server
        told = CliRunner().invoke(app, ["study", *command])
        assert told.exit_code == 0 and "best" in told.output and "server" not in told.output, told.output
    assert (study.folder / RESULTS).stat().st_mtime_ns == before
