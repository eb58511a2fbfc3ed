"""`make test-ui`: Prefect's UI in a browser: fill the forms, watch a stage fail, press Retry, open the reports, switch
on a schedule.

Needs Chromium and `pip install playwright`; is skipped without. Writes the pictures of docs/prefect.md to PCO_IMAGES.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import tiny_model
from tests.e2e.conftest import Case, asked, worker_is_done
from tests.pco.reward_training.conftest import preferences
from tests.points import PATIENCE_S, Points, until

playwright = pytest.importorskip("playwright.sync_api", reason="not tested: pip install playwright")
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("not tested: no chromium in PATH", allow_module_level=True)

pytestmark = [pytest.mark.ui, pytest.mark.timeout(6000)]

PAGE_S = 120  # a page of Prefect's
NOWHERE = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"  # the UI asks for outside addresses


@dataclass(frozen=True)
class Site:
    """A browser page on a server with the deployments and a worker."""

    page: Any
    api: str
    images: Path
    points: Points

    def open(self, path: str, shown: Any) -> None:
        """Open a page and wait until it shows something; a busy server may lose a part of it, so it is asked again."""
        for _ in range(5):
            with suppress(playwright.TimeoutError):
                self.page.goto(f"{self.api.removesuffix('/api')}/v2/{path}", timeout=1000 * PAGE_S)
                shown.wait_for(timeout=1000 * PAGE_S)
                return
        shown.wait_for()

    def shoot(self, name: str, height: int = 900) -> None:
        self.page.set_viewport_size({"width": 1500, "height": height})
        self.page.wait_for_timeout(6000)  # graphs are drawn late, and tell nobody when
        self.page.screenshot(path=self.images / f"prefect-{name}.png")

    def rows(self, what: str, **body: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = asked("POST", f"{self.api}/{what}/filter", json=body)
        return found

    def id_of(self, deployment: str) -> str:
        return str(next(one["id"] for one in self.rows("deployments") if one["name"] == deployment))


@pytest.fixture
def site(server: str, tmp_path: Path) -> Iterator[Site]:
    points = Points(tmp_path / "points")
    environment = {
        **os.environ,
        **points.environment,
        "OMP_NUM_THREADS": "1",
        "PREFECT_API_URL": server,
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    deploy = [sys.executable, "-m", "flows.cli", "deploy", "--folder", str(tmp_path)]
    subprocess.run(deploy, env=environment, check=True, timeout=PATIENCE_S)
    worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "pco", "--type", "process"]
    images = Path(os.environ.get("PCO_IMAGES", tmp_path))
    with (
        (tmp_path / "worker.log").open("w") as log,
        subprocess.Popen(worker, env=environment, cwd=tmp_path, stdout=log, stderr=log) as working,
        playwright.sync_playwright() as play,
    ):
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", NOWHERE])
        page = browser.new_page(viewport={"width": 1500, "height": 900}, device_scale_factor=0.8)
        page.set_default_timeout(1000 * PATIENCE_S)
        yield Site(page, server, images, points)
        browser.close()
        working.kill()  # asked politely, it sometimes stays


def _fill(site: Site, case: Case, run: str, rounds: str) -> None:
    raw = yaml.safe_load(case.file.read_text())
    page = site.page
    name = page.get_by_label("run", exact=True)
    site.open(f"deployments/deployment/{site.id_of('rounds')}/run", name)
    name.fill(run)
    page.get_by_label("Model (Optional)").fill(raw["policy"]["model"])
    for label, key in (("Train", "train"), ("Heldout", "heldout"), ("Heldout Text", "heldout_text")):
        page.get_by_label(f"{label} (Optional)", exact=True).fill(raw["prompts"][key])
    page.get_by_label("Rounds (Optional)").fill(rounds)
    sections = ("generate", "engine", "train", "gate")
    settings = [(f"{section}.{key}", value) for section in sections for key, value in raw.get(section, {}).items()]
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings]
    page.get_by_label("overrides (Optional)").fill("\n".join(overrides))


def _submit(site: Site) -> str:
    """Returns the id of the flow run; a server on SQLite may be too busy for a moment."""
    for _ in range(5):
        with site.page.expect_response(lambda answer: answer.url.endswith("create_flow_run")) as answered:
            site.page.get_by_role("button", name="Submit").click()
        if answered.value.status != 503:
            break
    assert answered.value.ok, answered.value.text()
    return str(answered.value.json()["id"])


def _come(rows: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = until(rows, "a flow run of the server's making", every_s=1)
    return found


def _row(site: Site, run: str) -> dict[str, Any]:
    found: dict[str, Any] = asked("GET", f"{site.api}/flow_runs/{run}")
    return found


def _becomes(site: Site, run: str, state: str) -> None:
    """Wait for the server to say so, then for the page: no browser need draw for all that time."""
    site.page.goto("about:blank")
    deadline = time.monotonic() + PATIENCE_S
    while (row := _row(site, run))["state_name"] != state:
        assert time.monotonic() < deadline, row["state"]
        time.sleep(1)
    site.open(f"runs/flow-run/{run}", site.page.get_by_text(state, exact=True).first)


def _written(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.glob("round-*/*/manifest.json")}


def test_a_run_goes_from_the_form_over_a_failed_stage_and_retry_to_its_report(
    make_case: Callable[..., Case], site: Site, tmp_path: Path
) -> None:
    page, folder = site.page, tmp_path / "runs" / "pictured"
    case = make_case(engine__max_model_len=tiny_model.CONTEXT)
    _fill(site, case, "pictured", "-1")
    page.get_by_role("button", name="Submit").click()
    refusal = page.get_by_label("Rounds (Optional)").evaluate("field => field.validationMessage")
    assert refusal == "Value must be greater than or equal to 0."
    assert site.rows("flow_runs") == []
    site.shoot("refused")

    page.get_by_label("Rounds (Optional)").fill("2")
    page.get_by_label("run", exact=True).scroll_into_view_if_needed()
    site.shoot("form", 1800)
    (folder / "round-01").mkdir(parents=True)
    obstacle = folder / "round-01" / "scores"
    obstacle.touch()
    run = _submit(site)
    _becomes(site, run, "Failed")
    assert "round-01/scores" in _row(site, run)["state"]["message"]
    site.shoot("failed")

    finished = _written(folder)
    until(lambda: worker_is_done(site.api, run, 1), "the end of the attempt", every_s=1)
    obstacle.unlink()
    scored = site.points.hold(folder / "round-01/scores/scores-00000.parquet")
    page.locator("button[aria-haspopup=menu]").first.click()
    page.get_by_role("menuitem", name="Retry").click()
    page.get_by_role("button", name="Retry").click()
    scored.wait()
    _becomes(site, run, "Running")
    scored.release()
    _becomes(site, run, "Completed")
    after = _written(folder)
    assert {path: after[path] for path in finished} == finished
    assert len(after) > len(finished) > 2
    assert _row(site, run)["name"] == "pictured · round 2 of 2"
    site.shoot("run")

    artifacts = {one["key"]: one["id"] for one in site.rows("artifacts")}
    heading = page.get_by_role("heading", name="Run pictured, round 1")
    site.open(f"artifacts/artifact/{artifacts['pictured-round-1']}", heading)
    site.shoot("report", 1500)
    image = page.locator("img[src^='data:image/svg+xml']")
    site.open(f"artifacts/artifact/{artifacts['pictured-reward']}", image)
    assert image.evaluate("image => image.naturalWidth") > 0
    site.shoot("plot", 700)
    _evaluate(site, "pictured:0\npictured:2")


def _evaluate(site: Site, policies: str) -> None:
    field = site.page.get_by_label("policies", exact=True)
    site.open(f"deployments/deployment/{site.id_of('evaluate')}/run", field)
    field.fill(policies)
    _becomes(site, _submit(site), "Completed")
    (found,) = site.rows("artifacts", artifacts={"key": {"any_": ["pco-evaluate"]}})
    site.open(f"artifacts/artifact/{found['id']}", site.page.get_by_text("pictured:2 less pictured:0").first)
    site.shoot("evaluation", 900)


def test_a_reward_model_is_trained_from_a_form_that_refuses_what_is_missing(
    site: Site, tiny: Path, tmp_path: Path
) -> None:
    page = site.page
    name = page.get_by_label("run", exact=True)
    site.open(f"deployments/deployment/{site.id_of('reward')}/run", name)
    name.fill("judge")
    page.get_by_role("button", name="Submit").click()
    page.get_by_text("'preferences' is a required property", exact=True).wait_for()
    page.get_by_label("preferences", exact=True).fill(str(preferences(tmp_path)))
    page.get_by_label("model (Optional)", exact=True).fill(str(tiny))
    page.get_by_label("Length Penalty (Optional)").fill("0.5")
    page.get_by_label("overrides (Optional)").fill("heldout_share=0.3\ntrain.micro_batch_pairs=4")
    site.shoot("reward", 1250)
    run = _submit(site)
    _becomes(site, run, "Completed")
    assert (tmp_path / "runs/judge/model/model.safetensors").exists()


def test_a_schedule_that_is_switched_on_makes_its_runs(site: Site) -> None:
    made = site.id_of("next-round")
    switch = site.page.get_by_role("switch").first
    site.open(f"deployments/deployment/{made}", switch)
    switch.click()
    found = _come(lambda: site.rows("flow_runs", deployments={"id": {"any_": [made]}}))
    assert {run["state_name"] for run in found} == {"Scheduled"}
    assert {run["parameters"]["run"] for run in found} == {"weekly"}
    site.page.get_by_role("tab", name="Upcoming").click()
    site.shoot("schedule", 700)
