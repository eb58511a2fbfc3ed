"""The doctor's canary with the real engines: it finds no fault in a sound model, and the fault of a spoilt one."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from flows.cli import app
from pco.doctor import canary
from pco.doctor.inputs import Inputs
from pco.execution.executor import LocalExecutor
from tests import builders

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("one_thread")]
SETTINGS = {"engine__kv_cache_gib": 0.1, "generate__temperature": 1.5, "train__precision": "fp32"}


def canary_of(folder: Path, model: Path, dtype: str) -> tuple[Inputs, canary.CanaryResult]:
    builders.write_prompts(folder, ["the river", "a small town"], ["a grey heron"])
    inputs = Inputs(builders.config(folder, model, engine__dtype=dtype, **SETTINGS))
    return inputs, canary.run_canary(inputs, folder, LocalExecutor())


def statuses(inputs: Inputs, result: canary.CanaryResult, tolerance: float) -> list[str]:
    return [status for status, _ in canary.comparison(result, inputs.tokenizer, tolerance)]


def test_of_a_sound_config_the_doctor_finds_no_fault_and_leaves_nothing_behind(tmp_path: Path, tiny: Path) -> None:
    builders.write_prompts(tmp_path, ["the river", "a small town"], ["a grey heron"])
    raw = builders.config(
        tmp_path, tiny, **SETTINGS, engine__dtype="float32", generate__max_tokens=16, train__loss={"kind": "dpo"}
    )
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw.model_dump(mode="json")))
    before = sorted(tmp_path.rglob("*"))
    result = CliRunner(env={"COLUMNS": "300"}).invoke(app, ["doctor", str(tmp_path / "config.yaml")])
    assert result.exit_code == 0, result.output
    assert "as training had saved it" in result.output
    assert "nats a token off the trainer's, over" in result.output
    assert sorted(tmp_path.rglob("*")) == before


def test_an_engine_in_another_number_format_fails_the_tolerance_of_float32_and_passes_its_own(
    tmp_path: Path, tiny: Path
) -> None:
    inputs, result = canary_of(tmp_path, tiny, "bfloat16")
    assert statuses(inputs, result, canary.tolerance(inputs)) == ["ok", "ok", "ok"]
    assert statuses(inputs, result, 1e-3) == ["ok", "ok", "fault"]


def test_a_tied_head_that_was_lost_is_heard(tmp_path: Path, tiny: Path) -> None:
    model = shutil.copytree(tiny, tmp_path / "model")
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**settings, "tie_word_embeddings": False}))
    inputs, result = canary_of(tmp_path, model, "float32")
    assert statuses(inputs, result, canary.tolerance(inputs)) == ["ok", "ok", "fault"]
