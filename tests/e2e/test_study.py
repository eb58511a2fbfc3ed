"""`pco study run` with two losses and two seeds: two runs at a time, killed in the middle, then one at a time."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from pco.runs import study as studies
from pco.runs.study_results import RESULTS
from tests.e2e.conftest import Case, stage_processes
from tests.points import PATIENCE_S, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(6000)]

STUDY = {"study": "s", "base": "config.yaml", "variants": {"pco": {}, "dpo": {"train.loss.kind": "dpo"}}, "seeds": 2}


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
    hold = case.points.hold(runs / "s-dpo-s0" / "round-01" / "training" / "manifest.json")
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
    lines = {(line.variant, line.seed): line for line in studies.lines(study)}
    assert {line.state for line in lines.values()} == {"finished"}, lines
    assert {run: line.shared for run, line in lines.items()} == {
        ("pco", 0): 0,
        ("dpo", 0): 5,
        ("pco", 1): 1,
        ("dpo", 1): 5,
    }
    rows = pq.read_table(study.folder / RESULTS).to_pylist()
    assert {(row["variant"], row["seed"], row["round"]) for row in rows} == {
        (variant, seed, number) for variant in ("pco", "dpo") for seed in (0, 1) for number in (0, 1)
    }
    assert all(row["tokens_sampled"] and row["tokens_trained"] for row in rows if row["round"])
    assert " less " in (study.folder / "report.html").read_text()
    told = case.tell("study", "best", "s", "--runs-dir", str(runs))
    assert "best" in told
    before = (study.folder / RESULTS).stat().st_mtime_ns
    assert "server" not in case.tell("study", "run", str(file))
    assert (study.folder / RESULTS).stat().st_mtime_ns == before
