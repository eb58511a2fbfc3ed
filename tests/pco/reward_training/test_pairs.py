"""Preferences on their way into a reward training: split by prompt, rendered as they are scored, refused when wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.errors import BadInput
from data.readers import prompt_key
from pco.config.reward import ModelReward
from pco.config.reward_training import load
from pco.models.rendering import load_tokenizer
from pco.reward_training import pairs
from pco.rewards import model
from tests import builders, tiny_reward
from tests.pco.reward_training.conftest import preferences, training_config

ROW = {"prompt": "Where to?", "chosen": "To the river.", "rejected": "No."}


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_no_prompt_is_on_both_sides_and_no_pair_on_none(tmp_path: Path, tiny: Path, share: float) -> None:
    file = preferences(tmp_path, pairs_each=3)
    inputs = pairs.check(training_config(tmp_path, tiny, preferences=file, heldout_share=share))
    sides = [{prompt_key(row["prompt"]) for row in inputs.of(side)} for side in (pairs.TRAIN, pairs.HELDOUT)]
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]
    assert len(inputs.pairs) == len(file.read_text().splitlines())


def test_prompts_that_differ_in_case_and_white_space_alone_are_on_one_side(tmp_path: Path, tiny: Path) -> None:
    rows = [json.loads(line) for line in preferences(tmp_path).read_text().splitlines()]
    twins = [{**row, "prompt": f" {row['prompt'].upper()}  "} for row in rows]
    file = builders.write_jsonl(tmp_path / "twins.jsonl", [*rows, *twins])
    inputs = pairs.check(training_config(tmp_path, tiny, preferences=file, heldout_share=0.5))
    assert not pairs.prompts(inputs.of(pairs.TRAIN)) & pairs.prompts(inputs.of(pairs.HELDOUT))


def test_texts_are_rendered_as_scoring_renders_them(tmp_path: Path, tiny: Path, tokenizer: Any) -> None:
    inputs = pairs.check(training_config(tmp_path, tiny))
    for row in inputs.pairs:
        for side in ("chosen", "rejected"):
            scored = model.rendered(tokenizer, row["prompt"], row[side], ModelReward(model="any"))
            assert row[f"{side}_token_ids"] == scored
            assert row[f"{side}_length"] == len(tokenizer(row[side], add_special_tokens=False)["input_ids"])


def test_pairs_with_a_text_that_is_too_long_are_left_out_and_counted(tmp_path: Path, tiny: Path) -> None:
    every = pairs.check(training_config(tmp_path, tiny))
    lengths = [max(len(row["chosen_token_ids"]), len(row["rejected_token_ids"])) for row in every.pairs]
    limit = sorted(lengths)[len(lengths) // 2]
    some = pairs.check(training_config(tmp_path, tiny, train__max_pair_tokens=limit))
    assert 0 < some.too_long == sum(length > limit for length in lengths)
    assert len(some.pairs) + some.too_long == len(every.pairs)


def several_labels(folder: Path, tokenizer: Any) -> Any:
    return training_config(folder, tiny_reward.make(folder / "labels", tokenizer, labels=2))


def spoilt(folder: Path, tiny: Path, spoil: Callable[[Path], object]) -> Any:
    """A training that begins with a copy of a model that something was done to."""
    copy = shutil.copytree(tiny, folder / "spoilt")
    spoil(copy)
    return training_config(folder, copy)


def cut(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def without_a_shard(model: Path) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-2-of-2.safetensors"}}))


def quantised(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))


def with_a_token(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    tokenizer.add_tokens(["<new>"])  # type: ignore[attr-defined]
    tokenizer.save_pretrained(model)


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "no pairs": (lambda f, m, t: training_config(f, m, preferences=builders.write_jsonl(f / "p.jsonl", [])), "no pref"),
    "one prompt": (
        lambda f, m, t: training_config(f, m, preferences=builders.write_jsonl(f / "p.jsonl", [ROW])),
        "at least two prompts",
    ),
    "a share that holds out nothing": (lambda f, m, t: training_config(f, m, heldout_share=1e-9), "none is held out"),
    "equal answers": (
        lambda f, m, t: training_config(
            f, m, preferences=builders.write_jsonl(f / "p.jsonl", [{**ROW, "rejected": ROW["chosen"]}])
        ),
        "line 1: .*the last two different",
    ),
    "no margins": (lambda f, m, t: training_config(f, m, train__margin_scale=1.0), "pairs have no `margin`"),
    "a margin in words": (
        lambda f, m, t: training_config(f, m, preferences=preferences(f, margin="much")),
        "line 1: expected a finite number or nothing under `margin`; found 'much'",
    ),
    "an infinite margin": (
        lambda f, m, t: training_config(f, m, preferences=preferences(f, margin=1e999)),
        "`margin`|Infinity",
    ),
    "all too long": (lambda f, m, t: training_config(f, m, train__max_pair_tokens=8), "of more than 8 tokens"),
    "weights cut short": (lambda f, m, t: spoilt(f, m, cut), "not whole safetensors"),
    "a shard that is missing": (
        lambda f, m, t: spoilt(f, m, without_a_shard),
        "1 of 1 files of its weights are missing",
    ),
    "quantised weights": (lambda f, m, t: spoilt(f, m, quantised), r"quantised \(awq\).*\(`model`\)"),
    "a token without embedding": (lambda f, m, t: spoilt(f, m, with_a_token), "token '<new>' .*`model`"),
    "several labels": (lambda f, m, t: several_labels(f, t), "has 2 labels; a reward model has one"),
    "no model": (lambda f, m, t: training_config(f, f / "nowhere"), "no such folder.*`model`"),
    "leakage": (
        lambda f, m, t: training_config(f, m, heldout=str(builders.write_jsonl(f / "h.jsonl", [first_of(f)]))),
        "1 of its prompts are also in",
    ),
}


def first_of(folder: Path) -> Any:
    return json.loads(preferences(folder).read_text().splitlines()[0])


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_with_its_reason(case: str, tmp_path: Path, tiny: Path, tokenizer: Any) -> None:
    make, told = REFUSED[case]
    with pytest.raises(BadInput, match=told):
        pairs.check(make(tmp_path, tiny, tokenizer))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("model: m\npreferences: p\n", "run: required"),
        ("run: r\nmodel: m\npreferences: p\ntrain: {lenght_penalty: 1}\n", "Did you mean `length_penalty`"),
        ("run: r\nmodel: m\npreferences: p\ntrain: {margin_scale: .nan}\n", "margin_scale"),
        ("run: r\nmodel: m\npreferences: p\nheldout: p\n", "names the training file"),
        ("run: r\nmodel: m\npreferences: p\nheldout_share: 1\n", "heldout_share"),
    ],
)
def test_a_faulty_config_is_refused_by_key(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "reward.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=told):
        load(path)
