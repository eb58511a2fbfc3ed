"""Data sets of the hub, read by the real client from a hub on this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import hub_server
from tests.hub_server import DATA_SET

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
NEW, OLD = "1" * 40, "0" * 40
ROWS = {NEW: [{"question": "the river"}, {"question": "the bridge"}, {"question": ""}], OLD: [{"question": "a boat"}]}
_READ = """
import json, sys
from data import mixing
from data.errors import BadInput
from data.importing import Request
try:
    rows, outcome = mixing.read(Request(sys.argv[1], "prompts", revision=sys.argv[2] or None, split="train"))
    print(json.dumps([outcome.commit, [row["prompt"] for row in rows], outcome.dropped]))
except BadInput as refused:
    print(json.dumps(str(refused)))
"""
_EXAMINE = """
import json, sys
from pco.config.run import parse
from pco.doctor import sources
from pco.doctor.inputs import Inputs
data_set, revision, heldout = sys.argv[1:]
prompts = {"train": {"dataset": data_set, "revision": revision or None}, "heldout": heldout, "heldout_text": heldout}
config = parse({"run": "r", "policy": {"model": "m"}, "prompts": prompts}, source="test")
print(json.dumps(list(sources.examine(Inputs(config)))))
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    with hub_server.serving(ROWS, {"main": NEW, "v1": OLD}) as address:
        yield address


def read(folder: Path, address: str, revision: str, data_set: str = DATA_SET) -> Any:
    return run(_READ, folder, address, data_set, revision)


def run(code: str, folder: Path, address: str, *words: str) -> Any:
    """What a process of its own says, since the address of the hub is read when its client is imported."""
    offline = "0" if address else "1"
    variables = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": offline, "HF_HOME": str(folder), "PYTHONPATH": str(ROOT)}
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    command = [sys.executable, "-P", "-c", code, *words]
    done = subprocess.run(command, env=kept | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("revision", "commit"), [("", NEW), ("v1", OLD), (OLD, OLD)])
def test_a_data_set_is_read_at_its_revision_and_the_commit_is_known(
    tmp_path: Path, hub: str, revision: str, commit: str
) -> None:
    told, prompts, dropped = read(tmp_path, hub, revision)
    assert told == commit
    assert prompts == [row["question"] for row in ROWS[commit] if row["question"]]
    assert dropped == ({"empty prompt": 1} if commit == NEW else {})


@pytest.mark.parametrize("revision", ["", "v1", OLD])
def test_a_config_is_warned_of_rows_that_may_be_others_tomorrow(tmp_path: Path, hub: str, revision: str) -> None:
    (tmp_path / "heldout.jsonl").write_text('{"prompt": "a grey heron"}')
    (status, told), *warnings = run(_EXAMINE, tmp_path, hub, DATA_SET, revision, str(tmp_path / "heldout.jsonl"))
    commit = OLD if revision else NEW
    assert status == "ok"
    assert f"prompts.train: {DATA_SET} at commit {commit}: " in told
    assert [commit in message for _, message in warnings] == ([] if revision == OLD else [True])


def test_a_cache_is_read_without_the_hub_but_not_for_another_revision(tmp_path: Path, hub: str) -> None:
    assert run("import datasets, sys; print(len(datasets.load_dataset(sys.argv[1])))", tmp_path, hub, DATA_SET) == 1
    for revision in ("", NEW):
        assert read(tmp_path, "", revision)[0] == NEW
    for revision in ("v1", OLD):
        assert f"the cache holds commit {NEW}, which may not be {revision}" in read(tmp_path, "", revision)


@pytest.mark.parametrize(("revision", "data_set"), [("v2", DATA_SET), ("", "nobody/nothing")])
def test_a_revision_or_data_set_that_is_not_there_is_one_clear_line(
    tmp_path: Path, hub: str, revision: str, data_set: str
) -> None:
    refused = read(tmp_path, hub, revision, data_set)
    assert refused.startswith(f"{data_set}: no such file, and the hub did not give it")
    assert "\n" not in refused
