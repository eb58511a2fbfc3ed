"""A run with test prompts: the test is killed and goes on, and the report begins with what it says."""

from collections.abc import Callable

import pyarrow as pa
import pytest

import pco
from data import store
from pco.evaluation import looks
from pco.specs import TESTS
from pco.stage import Stage
from tests import builders, tiny_model
from tests.e2e.conftest import Case

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(6000)]


def tables(case: Case) -> dict[str, pa.Table]:
    """Every table of both stages of the test."""
    found = {}
    for name in TESTS:
        folder = Stage(name, 1, case.config).folder
        manifest = store.read_manifest(folder)
        assert manifest is not None
        found |= {f"{name}/{part.table}": store.read_table(folder, part.table) for part in manifest.parts}
    return found


def test_a_killed_test_goes_on_as_one_look_and_equals_one_left_alone(make_case: Callable[..., Case]) -> None:
    case = make_case(rounds=1)
    prompts = [{"prompt": f"{text} Again"} for text in tiny_model.sentences(10, 3)]
    path = builders.write_jsonl(case.file.with_name("test.jsonl"), prompts)
    case.file.write_text(case.file.read_text().replace("prompts:\n", f"prompts:\n  test: {path}\n"))
    case.kill_before("round-01/test/candidates-00001.parquet")
    assert len(looks.read(case.folder)) == 1
    assert "test" in case.tell("status", str(case.folder))
    status, output = case.run()
    assert status == 0, output
    assert "On 10 test prompts (looked at once), round 1's policy less the start: reward" in output
    resumed = tables(case)
    case.tell("resume", str(case.folder), "--from", "test_start", "--round", "1")
    assert len(looks.read(case.folder)) == 1
    assert tables(case) == resumed
    run = pco.find(case.folder)
    assert run.looks == 1 and run.tests is not None
    assert "reward" in run.tests.column("metric").to_pylist()
    page = (case.folder / "report.html").read_text()
    assert "on 10 test prompts (looked at once)" in page and "used for decisions" in page
    told = case.tell("test", str(case.folder))
    assert "10 test prompts, which decided nothing (looked at once)" in " ".join(told.split())
