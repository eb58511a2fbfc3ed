"""`pco judge` and `pco annotations`, as typed: a run's real tables, a judge over real HTTP."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from data import store
from flows.cli import app
from pco.config.run import RunConfig
from pco.runs import folder as run_folder
from tests import builders
from tests.chat_server import ChatServer, serving
from tests.pco.report.report_runs import make_run

runner = CliRunner(env={"COLUMNS": "200"})


@pytest.fixture
def finished(tmp_path: Path) -> RunConfig:
    config = make_run(builders.config(tmp_path))
    run_folder.write_config(config, config.folder)
    return config


def told(*arguments: str | Path, status: int = 0) -> str:
    result = runner.invoke(app, list(map(str, arguments)))
    assert result.exit_code == status, result.output
    return " ".join(result.output.split())


def exported(config: RunConfig, folder: Path, number: int = 2) -> list[dict[str, Any]]:
    out = folder / f"outputs-{number}.json"
    told("export", f"{config.folder}:{number}", "--out", out)
    outputs: list[dict[str, Any]] = json.loads(out.read_text(encoding="utf-8"))
    return outputs


def judge_file(folder: Path, server: ChatServer, **knobs: Any) -> Path:
    path = folder / "judge.yaml"
    reward = {"kind": "judge", "base_url": server.url, "model": "jury", "max_tokens": 1, **knobs}
    path.write_text(yaml.safe_dump({"reward": reward}))
    return path


def likes_other(question: str) -> str:
    """Strongly for a text with `other` in it, and never for the position alone."""
    first = question.split("### Answer A\n")[1].split("### Answer B", maxsplit=1)[0]
    return "[[A>>B]]" if "other" in first else "[[B>>A]]"


def test_annotations_come_back_as_win_rates_of_the_evaluation(finished: RunConfig, tmp_path: Path) -> None:
    rows = []
    for i, output in enumerate(exported(finished, tmp_path)):
        texts = {"instruction": output["instruction"], "output_1": "reference", "output_2": output["output"]}
        rows.append({**texts, "preference": [2.0, 2.0, 1.0, None][i]})
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(rows))
    first = told("annotations", f"{finished.folder}:2", path)
    assert "66.7 %" in first
    assert "1 prompts (no annotation with a preference)" in first
    assert told("annotations", f"{finished.folder}:2", path) == first
    (folder,) = (finished.folder / "judgements").iterdir()
    assert len(store.read_table(folder, "judgements")) == 3
    other = told("annotations", f"{finished.folder}:0", path, status=2)  # another policy, of some same texts
    assert "of 4 annotations, 2 of other texts than the policy's" in other


def test_a_judge_says_what_it_costs_and_is_asked_in_both_orders(finished: RunConfig, tmp_path: Path) -> None:
    outputs = [{**row, "output": f"other {i}"} for i, row in enumerate(exported(finished, tmp_path))]
    path = tmp_path / "other.json"
    path.write_text(json.dumps([*outputs, {**outputs[0], "instruction": "of another run"}]))
    with serving(likes_other) as server:
        config = judge_file(tmp_path, server, verdicts="five", input_price=1e4)  # 1 a reply
        command = ("judge", f"{finished.folder}:2", path, "--config", config)
        assert "4 prompts: 8 requests, about" in told(*command, "--dry-run")
        assert not server.bodies
        stopped = told(*command, "--max-cost", "10", status=2)
        assert "questions were not asked" in stopped
        asked = len(server.bodies)
        assert 0 < asked < 8
        done = told(*command, "--max-cost", "1000")
        assert len(server.bodies) == 8
        assert f"({asked} more were answered before)" in done
        assert "Arena-Hard score │ 0.0 %" in done
        assert "follow the position: 0.0 %" in done
        assert told(*command, "--dry-run").startswith("4 prompts: 0 requests")
        assert len(server.bodies) == 8


def test_rounds_of_a_run_can_be_judged_against_each_other(finished: RunConfig, tmp_path: Path) -> None:
    with serving(lambda _: "[[A]]") as server:
        config = judge_file(tmp_path, server)
        done = told("judge", f"{finished.folder}:2", f"{finished.folder}:0", "--config", config)
    assert "win rate │ 50.0 %" in done
    assert "Arena-Hard" not in done


def test_what_cannot_be_judged_is_refused(finished: RunConfig, tmp_path: Path) -> None:
    outputs = exported(finished, tmp_path)
    few = tmp_path / "few.json"
    few.write_text(json.dumps(outputs[:3]))
    twice = tmp_path / "twice.json"
    twice.write_text(json.dumps([*outputs, outputs[0]]))
    with serving(lambda _: "[[A]]") as server:
        config = judge_file(tmp_path, server)
        run = f"{finished.folder}:2"
        assert "has no answer to 1 of the 4 prompts" in told("judge", run, few, "--config", config, status=2)
        assert "nowhere.json: no such file" in told("judge", run, "nowhere.json", "--config", config, status=2)
        assert "the same `instruction`" in told("judge", run, twice, "--config", config, status=2)
        config.write_text(yaml.safe_dump({"reward": {"kind": "repetition"}}))
        assert "expected `judge`" in told("judge", run, f"{finished.folder}:0", "--config", config, status=2)
        assert not server.bodies
