"""A stage's fingerprint changes with all that decides its result, and with nothing else."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from pco import specs
from pco.config.file import models_in
from pco.config.run import RunConfig
from pco.specs import StageName
from pco.stage import Artifact, Stage
from tests import builders

STAGES: tuple[StageName, ...] = get_args(StageName)

# Where things lie, how much memory and time they may take, and how many rounds follow: no result depends on these.
NEUTRAL = {
    "run",
    "runs_dir",
    "rounds",
    "keep_last",
    "keep_best",
    "stage_timeout_s",
    "stall_timeout_s",
    # Which prompts these are is known only to who reads them; the `prepare` stage freezes what it read.
    "prompts.train",
    "prompts.heldout",
    "prompts.heldout_text",
    "prompts.test",
    "engine.kv_cache_gib",
    "engine.gpu_memory_utilization",
    # It decides by the policy that a training is given.
    "train.begin_from",
    # Ways to split one sum, which tests of the training hold equal.
    "train.micro_batch_pairs",
    "train.processes",
    "train.zero_stage",
    "train.layout",
    "train.fused_head",
    "train.gradient_checkpointing",
    # A training that resumes from a checkpoint ends as the uninterrupted one.
    "train.checkpoint_steps",
    "train.keep_checkpoints",
    # By which processes shards are made.
    "executor.kind",
    "executor.workers",
    "executor.gpus_per_worker",
    "executor.address",
    # Who is told of a run.
    "track",
    # Which stages come after a refused round, each of which has a fingerprint of its own.
    "gate.otherwise",
    "gate.patience",
    "gate.retry_learning_rate",
    "gate.answer_within_s",
    "series",  # what a run comes to in it stands as its policy and prompts
    "gate.error_rate",  # a round's share of it reaches `decide` as the confidence of its requirements
}

# Another value where none follows from the type.
OTHERS = {
    "series": {"name": "nightly"},
    "prompts.exclude": ["0" * 16],
    "policy.revision": "main",
    "policy.system": "Be brief.",
    "prompts.preferences": "/preferences.jsonl",
    "prompts.test": "/test.jsonl",
    "prompts.test_share": 0.5,
    "prompts.feedback": "/feedback.jsonl",
    "gate.require": {"reward": {"min_change": 0.5}},
    "gate.guards": {"length": None},
    "gate.error_rate": 0.05,
    "gate.judged": {"share": 0.5, "beside": "length"},
    "executor.address": "head:6379",
    "reward": {"kind": "length", "max_tokens": 9},
    "evaluate.second_reward": {"kind": "length", "max_tokens": 9},
    "policy.template_date": "2026-01-02",
    "train.loss": {"kind": "sft"},
    "track": ["mlflow"],
    "train.lora": {"r": 2},
    "train.pairs_per_step": 16,
    "train.processes": 2,
}


def leaves(section: BaseModel, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Every setting by its dotted name, with its type and value; a choice with its own knobs counts as one too."""
    found: dict[str, tuple[Any, Any]] = {}
    for name, field in type(section).model_fields.items():
        value, dotted = getattr(section, name), f"{prefix}{name}"
        if isinstance(value, BaseModel):
            found |= leaves(value, f"{dotted}.")
        if not isinstance(value, BaseModel) or len(list(models_in(field.annotation))) > 1:
            found[dotted] = (field.annotation, value)
    return found


def another(dotted: str, annotation: Any, value: Any) -> Any:
    """A valid value other than the present one."""
    if dotted in OTHERS:
        return OTHERS[dotted]
    if get_origin(annotation) is Literal:
        return next(choice for choice in get_args(annotation) if choice != value)
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1 if dotted not in HALVED else value / 2
        case str():
            return f"{value}x"
        case list():
            return [*value, "x"]
    return 8


def is_only_choice(annotation: Any) -> bool:
    return get_origin(annotation) is Literal and len(get_args(annotation)) == 1


HALVED = {
    "generate.top_p",
    "train.warmup_share",
    "train.lora.dropout",
    "engine.gpu_memory_utilization",
    "pair.max_similarity",
}
# Without a round that is replayed preferences would be refused, without Ray more workers and an address; without a
# task its limit decides nothing.
CONFIG = builders.config(Path("/somewhere"), replay__rounds=1, evaluate__tasks=["hellaswag"], executor={"kind": "ray"})
SETTINGS = [name for name, (annotation, _) in leaves(CONFIG).items() if not is_only_choice(annotation)]


def fingerprints(config: RunConfig) -> dict[str, str]:
    inputs = {"policy": builders.PRETEND}
    return {name: builders.stage(name, config, inputs).fingerprint for name in STAGES}


@pytest.mark.parametrize("dotted", SETTINGS)
def test_every_setting_either_decides_some_stage_or_is_known_to_decide_none(dotted: str) -> None:
    value = another(dotted, *leaves(CONFIG)[dotted])
    changed = builders.changed(CONFIG, **{dotted.replace(".", "__"): value})
    assert changed != CONFIG
    before, after = fingerprints(CONFIG), fingerprints(changed)
    assert (before == after) == (dotted in NEUTRAL)


def test_what_is_not_used_stays_out_so_that_runs_made_before_it_was_there_are_still_finished() -> None:
    plain = builders.config(Path("/somewhere"))
    settings = {name: builders.stage(name, plain, {"policy": builders.PRETEND}).settings for name in STAGES}
    assert "rescore" not in settings["pair"]["replay"]
    assert not {"tasks", "task_limit"} & settings["evaluate"]["evaluate"].keys()


@pytest.mark.parametrize(
    ("dotted", "stages"),
    [
        ("policy.prompt_format", {"generate", "evaluate"}),
        ("generate.temperature", {"generate", "evaluate"}),
        ("engine.dtype", {"generate", "evaluate"}),
        ("reward.ngram", {"score", "evaluate"}),
        ("pair.min_margin", {"pair"}),
        ("train.learning_rate", {"train"}),
        ("train.loss.alpha", {"train"}),
        ("evaluate.samples", {"evaluate"}),
        ("gate.require", {"decide"}),
        ("gate.guards", {"decide"}),
        ("gate.judged", {"evaluate", "decide"}),
        ("evaluate.second_reward", {"evaluate"}),
        ("seed", {"generate", "pair", "train", "evaluate"}),
    ],
)
def test_a_setting_changes_the_stages_that_read_it_and_no_others(dotted: str, stages: set[str]) -> None:
    value = another(dotted, *leaves(CONFIG)[dotted])
    after = fingerprints(builders.changed(CONFIG, **{dotted.replace(".", "__"): value}))
    tests = (
        {"test_start", "test"} if "evaluate" in stages and dotted not in {"evaluate.tasks", "gate.judged"} else set()
    )
    assert {name for name, before in fingerprints(CONFIG).items() if before != after[name]} == stages | tests


@given(
    a=st.tuples(st.sampled_from(STAGES), st.integers(0, 3), st.sampled_from(["f", "g"]), st.sampled_from(["/a", "/b"])),
    b=st.tuples(st.sampled_from(STAGES), st.integers(0, 3), st.sampled_from(["f", "g"]), st.sampled_from(["/a", "/b"])),
)
def test_name_round_and_inputs_fingerprints_decide_and_the_inputs_folders_do_not(a: Any, b: Any) -> None:
    one, other = (
        Stage(name, number, CONFIG, {"policy": Artifact(Path(folder), fingerprint)})
        for name, number, fingerprint, folder in (a, b)
    )
    assert (one.fingerprint == other.fingerprint) == (a[:3] == b[:3])


def test_which_input_is_which_decides() -> None:
    one, other = Artifact(Path("/a"), "f"), Artifact(Path("/b"), "g")
    as_given = Stage("decide", 1, CONFIG, {"new": one, "old": other})
    assert as_given.fingerprint != Stage("decide", 1, CONFIG, {"new": other, "old": one}).fingerprint
    assert as_given.fingerprint == Stage("decide", 1, CONFIG, {"old": other, "new": one}).fingerprint


@pytest.mark.parametrize("name", STAGES)
def test_another_version_of_a_stages_code_decides_for_that_stage_alone(
    name: StageName, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprints(CONFIG)
    monkeypatch.setitem(specs.SPECS, name, replace(specs.SPECS[name], version=99))
    after = fingerprints(CONFIG)
    assert {stage for stage in STAGES if before[stage] != after[stage]} == {name}


def test_a_fingerprint_is_the_same_in_every_process() -> None:
    # A change of this constant means that no run on disk is recognised any more: only for a good reason.
    pinned = builders.stage("score", CONFIG, {"candidates": Artifact(Path("/anywhere"), "f" * 16)})
    assert pinned.fingerprint == "2ecd91fec8ffffcb"


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("number", [0, 1, 12])
def test_a_stage_survives_the_way_to_its_process(name: StageName, number: int) -> None:
    config = builders.changed(CONFIG, train__lora={"r": 2}, generate__stop=["\n", "é"])
    stage = Stage(name, number, config, {"policy": builders.PRETEND, "pairs": Artifact(Path("/é"), "f")})
    assert Stage.from_json(stage.to_json()) == stage
    assert Stage.from_json(stage.to_json()).fingerprint == stage.fingerprint


def test_no_two_stages_of_a_run_share_a_folder() -> None:
    folders = [builders.stage(name, CONFIG, number=number).folder for name in STAGES for number in (0, 1, 2)]
    assert len(set(folders)) == len(folders)
    assert all(folder.is_relative_to(CONFIG.folder) for folder in folders)


def test_the_manifest_of_a_finished_stage_says_from_what_it_was_made(tmp_path: Path) -> None:
    config = builders.config(tmp_path, gate__guards={"length": {"max_ratio": 2.5}})
    stage = builders.stage("decide", config, {"start": Artifact(tmp_path, "f")})
    manifest = stage.finish(unit="prompts", rows_in=3, rows_out=2, dropped={"tie": 1}, started=1.0)
    assert (manifest.stage, manifest.fingerprint) == ("decide", stage.fingerprint)
    assert manifest.inputs == {"start": "f"}
    assert manifest.settings["gate"]["guards"]["length"]["max_ratio"] == 2.5
