"""Data named where they are: read as an import reads them, frozen with what became of every row."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from data import files, store
from data.errors import BadInput
from data.mixing import LIMIT, SHARES
from data.readers import Row
from data.store import Manifest
from pco import doctor
from pco.config.run import RunConfig, parse
from pco.doctor import checks, reading
from pco.doctor.inputs import Inputs
from pco.rounds import State, inputs_of
from pco.stage import Stage
from pco.stages import prepare
from tests import builders
from tests.builders import write_jsonl

TRAIN = [f"the river {i}" for i in range(6)]
HELDOUT = ["a grey heron", "an old bridge"]
PAIR = {"chosen": "the boat drifts past the quay", "rejected": "boat boat boat"}


@pytest.fixture
def config(tmp_path: Path, tiny: Path) -> RunConfig:
    """A config of plain files that passes."""
    builders.write_prompts(tmp_path, TRAIN, HELDOUT)
    return builders.config(tmp_path, tiny, generate__max_tokens=16)


def unpinned(**settings: Any) -> RunConfig:
    """A config that no file needs to be there for."""
    return builders.config(Path("/nowhere"), **settings)


def prepared(config: RunConfig) -> tuple[Manifest, list[Row], list[dict[str, Any]]]:
    """The manifest, the training prompts and what became of each source."""
    stage = builders.prepare_stage(config)
    manifest = prepare.run(stage)
    rows = [row for row in store.read_table(stage.folder, "prompts").to_pylist() if row.pop("split") == "train"]
    return manifest, rows, json.loads(manifest.outputs.get("sources", "[]"))


def named(path: Path, **settings: Any) -> dict[str, Any]:
    return {"dataset": str(path), **settings}


def test_a_source_gives_the_rows_that_its_path_gives(config: RunConfig, tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    rows = [{"prompt": "a", "id": 1, "reference": 4.0}, {"prompt": messages, "id": "b"}, {"prompt": "c"}]
    path = write_jsonl(tmp_path / "some.jsonl", rows)
    of_path = prepared(builders.changed(config, prompts__train=str(path)))
    of_source = prepared(builders.changed(config, run="other", prompts__train=named(path)))
    assert of_source[1] == of_path[1]
    assert "sources" not in of_path[0].outputs


def test_rows_that_are_dropped_are_counted_in_manifest_log_and_card(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": text, "answer": "4"} for text in [*TRAIN, TRAIN[0], ""]]
    path = write_jsonl(tmp_path / "some.jsonl", rows)
    source = named(path, map={"question": "prompt", "answer": "reference"})
    config = builders.changed(config, prompts__train=source)
    manifest, train, (record,) = prepared(config)
    assert [(row["prompt"], row["reference"]) for row in train] == [(text, "4") for text in TRAIN]
    assert manifest.dropped == {"train: empty prompt": 1, "train: exact duplicate": 1}
    assert manifest.rows_in == len(rows) + len(HELDOUT) + 1
    assert (record["setting"], record["rows_in"], record["rows_out"]) == ("prompts.train", 8, 6)
    assert record["digest"] == manifest.inputs["train"] == files.file_digest(path)
    told = f"prompts.train: {path}: 6 of 8 rows, from prompt + reference, dropped empty prompt: 1, exact duplicate: 1"
    assert told in capsys.readouterr().out
    text = (builders.prepare_stage(config).folder / reading.CARD).read_text()
    for part in ("## `prompts.train`", str(path), "question = prompt", "| dropped: empty prompt | 1 |", "7 of 7 rows"):
        assert part in text


def test_the_doctor_tells_what_becomes_of_each_source(config: RunConfig, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "some.jsonl", [{"question": text} for text in [*TRAIN, ""]])
    mixture = [named(path), named(config.prompts.train, limit=2)]
    _, warnings = doctor.check(builders.changed(config, prompts__train=[mixture[0]]))
    assert "sources" not in {warning.name for warning in warnings}
    found = list(doctor.examine(builders.changed(config, prompts__train=mixture), quick=True))
    assert [finding.message for finding in found if finding.status == "fault"] == [
        f"prompts.train: {config.prompts.train}: no row of 2 can be kept (exact duplicate: 2). The sources before it "
        "have them all: leave this one out."
    ]
    found = list(doctor.examine(builders.changed(config, prompts__train=mixture[:1]), quick=True))
    (told,) = [finding for finding in found if finding.name == "sources"]
    assert (told.status, told.message) == (
        "ok",
        f"prompts.train.0: {path}: 6 of 7 rows, from question, dropped empty prompt: 1",
    )


def test_a_mixture_is_frozen_with_the_counts_of_each_source(config: RunConfig, tmp_path: Path) -> None:
    few = write_jsonl(tmp_path / "few.jsonl", [{"prompt": f"few {i}"} for i in range(5)])
    many = write_jsonl(tmp_path / "many.jsonl", [{"question": f"many {i}"} for i in range(50)])
    mixture = [named(few, weight=1), named(many, weight=3, limit=40)]
    manifest, train, records = prepared(builders.changed(config, prompts__train=mixture, prompts__train_limit=12))
    assert sum(row["prompt"].startswith("few") for row in train) == 3
    assert [record["rows_out"] for record in records] == [3, 9]
    assert [record["dropped"] for record in records] == [{LIMIT: 2}, {SHARES: 25, LIMIT: 6}]
    assert manifest.dropped == {f"train: {LIMIT}": 8, f"train: {SHARES}": 25}
    assert {"train.0", "train.1"} <= set(manifest.inputs)


def test_preferences_and_feedback_may_be_sources_too(config: RunConfig, tmp_path: Path) -> None:
    first = write_jsonl(tmp_path / "a.jsonl", [{"instruction": "Go on.", "chosen": "Yes.", "rejected": "No."}])
    second = write_jsonl(
        tmp_path / "b.jsonl", [{"prompt": text, "output_1": "a", "output_2": "b", "preference": 1} for text in TRAIN]
    )
    thumbs = write_jsonl(tmp_path / "c.jsonl", [{"prompt": "Go.", "response": "Yes.", "stars": 5}])
    config = builders.changed(
        config,
        replay__rounds=1,
        prompts__preferences=[named(first), named(second, labels={"second": "1", "first": "2"})],
        prompts__feedback=named(thumbs, map={"stars": "label"}, labels={"good": ["4", "5"], "bad": "1"}),
    )
    stage = builders.prepare_stage(config)
    records = json.loads(prepare.run(stage).outputs["sources"])
    pairs = store.read_table(stage.folder, "preferences").to_pylist()
    assert {(row["chosen"], row["rejected"]) for row in pairs} == {("Yes.", "No."), ("b", "a")}
    assert {row["policy"] for row in pairs} == {
        files.digest([stage.inputs["preferences.0"].fingerprint, stage.inputs["preferences.1"].fingerprint])
    }
    assert store.read_table(stage.folder, "feedback").column("good").to_pylist() == [True]
    assert [record["setting"] for record in records] == [f"prompts.{name}" for name in stage.inputs if name[0] in "pf"]


def test_a_folder_that_the_hubs_library_saved_is_a_source(config: RunConfig, tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_list([{"question": text} for text in TRAIN])
    held = datasets.Dataset.from_list([{"question": text} for text in HELDOUT])
    datasets.DatasetDict({"train": rows, "test": held}).save_to_disk(tmp_path / "saved")
    folder = named(tmp_path / "saved")
    config = builders.changed(
        config, prompts__train={**folder, "split": "train"}, prompts__heldout={**folder, "split": "test"}
    )
    _, train, records = prepared(config)
    assert [row["prompt"] for row in train] == TRAIN
    assert [record["digest"] for record in records] == [files.tree_digest(tmp_path / "saved")] * 2


@pytest.mark.parametrize(
    ("source", "refused"),
    [
        ({}, r"prompts\.train: .*saved: has the splits train, test\. Choose one with --split\. In a config, --map"),
        ({"split": "dev"}, r"prompts\.train: .*saved: has no split dev\. There are: train, test"),
        ({"split": "train", "name": "main"}, "a folder of `save_to_disk` has no subset"),
        ({"split": "train", "revision": "main"}, "a revision belongs to a data set of the hub"),
        ({"split": "train", "map": {"prompt": "reference"}}, "--map names `prompt`, but the columns are question"),
    ],
)
def test_a_source_that_may_be_read_in_two_ways_is_refused_by_its_setting(
    tmp_path: Path, source: dict[str, Any], refused: str
) -> None:
    import datasets

    rows = datasets.Dataset.from_list([{"question": text} for text in TRAIN])
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "saved")
    config = builders.config(tmp_path, prompts__train=named(tmp_path / "saved", **source))
    with pytest.raises(BadInput, match=refused):
        assert Inputs(config).train


def test_a_held_out_prompt_in_a_mixture_is_refused(config: RunConfig, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "some.jsonl", [{"question": "A grey  HERON"}])
    mixture = [config.prompts.train, named(path)]
    with pytest.raises(BadInput, match=r"is also trained on \(.*train\.jsonl, .*some\.jsonl, preferences or feedback"):
        checks.check(builders.changed(config, prompts__train=mixture))


# Fingerprints.


def fingerprint(train: object, **settings: Any) -> str:
    config = parse(unpinned(prompts__train=train, **settings).model_dump(mode="json"), source="test")
    inputs = {} if isinstance(train, str) else _of_train(config)
    return Stage("prepare", 0, config, inputs).fingerprint


def _of_train(config: RunConfig) -> dict[str, Any]:
    prompts = config.prompts.model_copy(update={"heldout": config.prompts.train, "heldout_text": None})
    inputs = inputs_of("prepare", config.model_copy(update={"prompts": prompts}), State())
    return {name: artifact for name, artifact in inputs.items() if name.startswith("train")}


def test_a_source_is_known_by_its_content_and_by_how_it_is_read(tmp_path: Path) -> None:
    rows = [{"question": text} for text in TRAIN]
    first, second, other = (write_jsonl(tmp_path / name / "a.jsonl", rows) for name in ("a", "b", "c"))
    write_jsonl(other, [{"question": "other"}])
    base = fingerprint(named(first))
    assert fingerprint(named(second)) == base
    assert fingerprint(named(first), seed=1) == base
    changes = [{"map": {"question": "prompt"}}, {"ignore": ["id"]}, {"limit": 5}, {"turns": "single"}]
    different = [fingerprint(named(other)), *(fingerprint(named(first, **change)) for change in changes)]
    different += [fingerprint([named(first)]), fingerprint([named(first)], seed=1)]
    assert len({base, *different}) == 1 + len(different)


def test_a_folder_is_known_by_its_content(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a" / "data" / "train.jsonl", [{"question": "a"}])
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert fingerprint(named(tmp_path / "a")) == fingerprint(named(tmp_path / "b"))
    before = fingerprint(named(tmp_path / "a"))
    write_jsonl(tmp_path / "a" / "data" / "train.jsonl", [{"question": "b"}])
    assert fingerprint(named(tmp_path / "a")) != before


def test_a_data_set_of_the_hub_is_known_by_its_name_split_and_revision() -> None:
    base = {"dataset": "someone/something", "split": "train"}
    changes: list[dict[str, Any]] = [{}, {"dataset": "someone/else"}, {"split": "test"}, {"revision": "v1"}]
    assert len({fingerprint({**base, **change}) for change in [*changes, {"name": "main"}]}) == 5


def test_a_source_that_is_gone_since_it_was_frozen_counts_as_unchanged(config: RunConfig, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "some.jsonl", [{"question": text} for text in TRAIN])
    config = builders.changed(config, prompts__train=[named(path)])
    prepare.run(builders.prepare_stage(config))
    path.unlink()
    assert builders.prepare_stage(config).finished() is not None
    write_jsonl(path, [{"question": "other"}])
    with pytest.raises(Exception, match=r"its input `train\.0` changed"):
        builders.prepare_stage(config).finished()


def test_a_mixture_is_the_same_whatever_the_order_of_the_rows(config: RunConfig, tmp_path: Path) -> None:
    rows = [{"question": f"many {i}"} for i in range(30)]
    few = write_jsonl(tmp_path / "few.jsonl", [{"prompt": f"few {i}"} for i in range(5)])
    frozen = []
    for run in ("a", "b"):
        many = write_jsonl(tmp_path / f"{run}.jsonl", random.Random(run).sample(rows, len(rows)))
        mixture = [named(few, weight=0.5), named(many, weight=1.5)]
        frozen.append(prepared(builders.changed(config, run=run, prompts__train=mixture))[1])
    assert frozen[0] == frozen[1]


# Right answers that are none.


def test_references_of_nan_are_told_and_counted(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": text, "reference": answer} for text, answer in zip(TRAIN, [4, 4.5, float("nan")], strict=False)]
    path = write_jsonl(tmp_path / "some.jsonl", rows)
    manifest, train, _ = prepared(builders.changed(config, prompts__train=str(path)))
    assert [row["reference"] for row in train] == ["4", "4.5", None]
    assert manifest.metrics == {"nan_references_train": 1}
    assert "prompts.train: references of NaN, which is none: 1" in capsys.readouterr().out
