"""Where the test prompts come from: a share of the held-out ones, or data where they are."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from data import store
from data.errors import BadInput
from data.importing import is_heldout
from data.readers import prompt_key
from data.store import Manifest
from pco.config.run import RunConfig
from pco.doctor.inputs import Inputs
from pco.doctor.reading import is_set_aside
from pco.rounds import State, inputs_of
from pco.runs.folder import check_same, write_config
from pco.specs import SPECS
from pco.stage import Stage
from pco.stages import prepare, prepare_test
from tests import builders
from tests.builders import write_jsonl

TRAIN = ["the river", "a bridge"]
HELDOUT = [f"a grey heron {i}" for i in range(40)]


@pytest.fixture
def config(tmp_path: Path, tiny: Path) -> RunConfig:
    """A config of plain files without test prompts."""
    builders.write_prompts(tmp_path, TRAIN, HELDOUT)
    return builders.config(tmp_path, tiny, policy__prompt_format="raw", generate__max_tokens=4)


def frozen(config: RunConfig) -> tuple[set[str], set[str], Manifest]:
    """The held-out and the test prompts, as both stages freeze them, and what became of the latter."""
    first = builders.prepare_stage(config)
    prepare.run(first)
    state = State(made={"prepare": builders.result(first)})
    stage = Stage("prepare_test", 0, config, inputs_of("prepare_test", config, state))
    manifest = prepare_test.run(stage)
    return texts(first, "heldout"), texts(stage, "test"), manifest


def texts(stage: Stage, split: str) -> set[str]:
    rows = store.read_table(stage.folder, "prompts").to_pylist()
    return {row["prompt"] for row in rows if row["split"] == split}


def test_a_share_of_the_heldout_prompts_is_set_aside_and_nothing_is_lost(config: RunConfig) -> None:
    heldout, test, _ = frozen(builders.changed(config, prompts__test_share=0.3))
    assert heldout | test == set(HELDOUT)
    assert not heldout & test
    assert heldout and test


@given(st.lists(st.text(min_size=1), min_size=1, max_size=20), st.floats(0.01, 0.99))
def test_a_prompt_is_on_the_side_that_case_and_white_space_do_not_change(prompts: list[str], share: float) -> None:
    for prompt in prompts:
        assert is_set_aside(prompt, share) == is_set_aside(f"  {prompt.casefold()}\n", share)


def test_a_prompt_that_is_set_aside_stays_so_as_the_share_grows() -> None:
    shares = [0.1, 0.3, 0.5, 0.9]
    for prompt in HELDOUT:
        sides = [is_set_aside(prompt, share) for share in shares]
        assert sides == sorted(sides)


def test_the_split_of_an_import_says_nothing_of_the_test_share() -> None:
    imported = [text for i in range(2_000) if is_heldout(prompt_key(text := f"prompt {i}"), 0.2)]
    aside = sum(is_set_aside(text, 0.2) for text in imported)
    assert 0.1 < aside / len(imported) < 0.3


def test_a_file_that_grows_keeps_its_split(config: RunConfig, tmp_path: Path) -> None:
    config = builders.changed(config, prompts__test_share=0.3)
    before = Inputs(config)
    aside = {row["prompt"] for row in before.test}
    write_jsonl(tmp_path / "heldout.jsonl", [{"prompt": text} for text in ["new", *HELDOUT, "newer"]])
    assert {row["prompt"] for row in Inputs(config).test} - {"new", "newer"} == aside


@pytest.mark.parametrize(("share", "fault"), [(0.000001, "none for the test"), (0.999999, "none to decide by")])
def test_a_share_that_leaves_a_side_empty_is_refused(config: RunConfig, share: float, fault: str) -> None:
    config = builders.changed(config, prompts__test_share=share)
    with pytest.raises(BadInput, match=f"prompts.test_share.*of 40 held-out prompts leaves {fault}"):
        prepare.run(builders.prepare_stage(config))


@pytest.mark.parametrize("share", [0, 1, -0.5, float("nan")])
def test_a_share_is_between_nothing_and_all(config: RunConfig, share: float) -> None:
    with pytest.raises(ValidationError, match="test_share"):
        builders.changed(config, prompts__test_share=share)


def test_both_ways_to_name_test_prompts_at_once_are_refused(config: RunConfig) -> None:
    with pytest.raises(ValidationError, match="test and test_share"):
        builders.changed(config, prompts__test_share=0.5, prompts__test="test.jsonl")


def test_a_share_changes_what_the_gate_decides_by_and_so_the_first_stage(config: RunConfig, tmp_path: Path) -> None:
    settings = [
        SPECS["prepare"].settings(builders.changed(config, **changes))
        for changes in ({}, {"prompts__test_share": 0.3}, {"prompts__test": str(tmp_path / "heldout.jsonl")})
    ]
    assert settings[0] != settings[1]
    assert settings[0] == settings[2]


def test_a_dataset_gives_test_prompts_and_the_manifest_tells_of_every_row(config: RunConfig, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"question": text} for text in ("one", "two", "one", "")]
    source = {"dataset": str(write_jsonl(tmp_path / "test.jsonl", rows)), "map": {"question": "prompt"}}
    heldout, test, manifest = frozen(builders.changed(config, prompts__test=source))
    assert heldout == set(HELDOUT)
    assert test == {"one", "two"}
    assert manifest.rows_in == manifest.rows_out + sum(manifest.dropped.values()) == 4
    (record,) = json.loads(manifest.outputs["sources"])
    assert (record["setting"], record["rows_in"], record["rows_out"]) == ("prompts.test", 4, 2)
    assert record["digest"] == manifest.inputs["test"]


def test_a_share_of_a_dataset_tells_of_every_row_on_both_sides(config: RunConfig, tmp_path: Path) -> None:
    source = {"dataset": str(tmp_path / "heldout.jsonl")}
    config = builders.changed(config, prompts__heldout=source, prompts__test_share=0.3)
    heldout, test, manifest = frozen(config)
    assert manifest.dropped == {"test: held out": len(heldout)}
    assert manifest.rows_in == len(HELDOUT)
    first = store.read_manifest(builders.prepare_stage(config).folder)
    assert first is not None and first.dropped == {"heldout: set aside for the test": len(test)}


def test_a_test_set_of_any_form_may_join_a_run(config: RunConfig, tmp_path: Path) -> None:
    write_config(config, config.folder)
    check_same(builders.changed(config, prompts__test={"dataset": str(tmp_path / "test.jsonl"), "split": None}))
