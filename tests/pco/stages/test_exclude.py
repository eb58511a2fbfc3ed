"""What a config excludes is frozen into no table, and counted; the rest is as it would be."""

from pathlib import Path

import pytest

from data import files, store
from data.errors import BadInput
from data.readers import prompt_id
from pco.config.run import RunConfig
from pco.doctor.inputs import Inputs
from pco.runs import standalone
from pco.stages import prepare
from tests import builders


def config_of(folder: Path, model: Path, exclude: list[str]) -> RunConfig:
    builders.write_prompts(folder, ["Train me", "Or me"], ["Held out", "Held up"], ["Prose.", "Verse."])
    seeds = [{"prompt": text, "chosen": "yes", "rejected": "no"} for text in ("Ask", "Or ask", "Ask on")]
    rated = [{"prompt": text, "completion": "yes", "good": True} for text in ("Rate", "Or rate")]
    return builders.config(
        folder,
        model,
        prompts__preferences=str(builders.write_jsonl(folder / "preferences.jsonl", seeds)),
        prompts__feedback=str(builders.write_jsonl(folder / "feedback.jsonl", rated)),
        prompts__exclude=[prompt_id(text) for text in exclude],
        replay__rounds=1,
        generate__max_tokens=8,
    )


def tables(folder: Path) -> dict[str, list[dict]]:
    return {name: store.read_table(folder, name).to_pylist() for name in ("prompts", "preferences", "feedback")}


def test_the_tables_are_those_without_what_is_excluded(tmp_path: Path, tiny: Path) -> None:
    excluded = ["Or me", "Held up", "Verse.", "Or ask", "Or rate", "not in the data"]
    whole = builders.prepare_stage(config_of(tmp_path / "whole", tiny, []))
    without = builders.prepare_stage(config_of(tmp_path / "without", tiny, excluded))
    for stage in (whole, without):
        prepare.run(stage)
    manifest = store.read_manifest(without.folder)
    assert manifest
    assert manifest.dropped == {"excluded": 5}
    ids = {prompt_id(text) for text in excluded}
    before, after = (tables(stage.folder) for stage in (whole, without))
    for rows in before["preferences"], after["preferences"]:
        for row in rows:
            row.pop("policy")  # the digest of a file, of which there are two here
    assert after == {name: [row for row in rows if row["prompt_id"] not in ids] for name, rows in before.items()}


def test_a_config_that_leaves_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    inputs = Inputs(config_of(tmp_path, Path("some/model"), ["Train me", "Or me"]))
    with pytest.raises(BadInput, match=r"prompts\.exclude: leaves nothing of prompts\.train"):
        _ = inputs.train


@pytest.mark.parametrize("wrong", ["Train me", "0" * 15, "G" * 16])
def test_what_is_no_id_is_refused(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(ValueError, match="exclude"):
        builders.config(tmp_path, prompts__exclude=[wrong])


def test_an_evaluation_made_before_there_was_anything_to_exclude_keeps_its_folder(tmp_path: Path) -> None:
    config = builders.config(tmp_path)
    plan = standalone.planned(config, "some/model", None, tmp_path)
    named = plan.prompts.model_dump(mode="json", exclude={"test", "test_share", "exclude"})
    identity = ["some/model", named, builders.stage("evaluate", plan, number=0).settings]
    assert plan.run == f"model-{files.digest({'of': identity})[:8]}"
    other = config.model_copy(update={"prompts": config.prompts.model_copy(update={"exclude": ["0" * 16]})})
    assert standalone.planned(other, "some/model", None, tmp_path).folder != plan.folder
