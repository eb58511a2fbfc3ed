"""`pco run` whose policy and reward model are LoRA adapters."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from data import files, store
from pco.runs import verify
from pco.stage import Stage
from tests import tiny_reward
from tests.e2e.conftest import Case

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]


def adapted(base: Path, folder: Path, kind: Any, task: str, **how: Any) -> Path:
    """An adapter of a base as peft saves it, whose weights are no zeros."""
    torch.manual_seed(1)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type=task)
    get_peft_model(kind.from_pretrained(base, **how), lora).save_pretrained(folder)
    return folder


def test_a_run_of_adapters_needs_them_to_begin_and_not_its_policys_to_go_on(
    make_case: Callable[..., Case], tiny: Path, tmp_path: Path, tokenizer: Any
) -> None:
    base = shutil.copytree(tiny, tmp_path / "base")
    policy = adapted(base, tmp_path / "policy", AutoModelForCausalLM, "CAUSAL_LM")
    judge = tiny_reward.make(tmp_path / "judge", tokenizer)
    judging = adapted(judge, tmp_path / "judging", AutoModelForSequenceClassification, "SEQ_CLS", num_labels=1)
    reward = {"kind": "model", "model": str(judging)}
    case = make_case(rounds=1, policy__model=str(policy), reward=reward, generate__max_tokens=8)
    status, output = case.run()
    assert status == 0, output
    whole = case.folder / "round-00" / "policy"
    prepared = store.read_manifest(Stage("prepare", 0, case.config).folder)
    assert prepared and prepared.outputs["policy"] == files.folder_digest(whole) != files.folder_digest(base)
    rows = store.read_table(Stage("generate", 1, case.config).folder, "candidates").to_pylist()
    assert {row["policy"] for row in rows} == {prepared.outputs["policy"]}
    shutil.rmtree(base)
    shutil.rmtree(policy)
    forked = case.forked("longer", "--set", "rounds=2")
    status, output = forked.run()
    assert status == 0, output
    assert verify.damage(forked.config) == []
