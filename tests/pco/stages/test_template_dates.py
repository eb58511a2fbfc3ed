"""A run whose chat templates write today's date writes the date of its start in all rounds, whenever it is resumed."""

import shutil
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from data import store
from pco.config.run import RunConfig
from pco.doctor import conversations
from pco.doctor.inputs import Inputs
from pco.models.rendering import load_tokenizer, render
from pco.rewards import model as reward_model
from pco.rounds import as_begun, walk
from pco.runs import fork, standalone
from pco.runs.folder import opened, read_config
from pco.runs.status import RunState
from pco.stage import LAUNCHED, Stage
from pco.stages import prepare
from tests import builders, tiny_reward
from tests.pco.doctor.test_doctor import edit_template

START, LATER = date(2026, 1, 31), date(2026, 2, 1)
TODAY = "{{ strftime_now('%Y-%m-%d') }}"


@pytest.fixture
def dated(tiny: Path, tmp_path: Path) -> Path:
    """A model whose chat template writes today's date."""
    model = shutil.copytree(tiny, tmp_path / "model")
    edit_template(model, "{{ bos_token }}", "{{ bos_token }}" + TODAY)
    return model


@pytest.fixture
def config(dated: Path, tmp_path: Path) -> RunConfig:
    builders.write_prompts(tmp_path, ["the river"], ["the old bridge"])
    return builders.config(tmp_path, dated, generate__max_tokens=16)


def begin(config: RunConfig, monkeypatch: pytest.MonkeyPatch, day: date) -> Stage:
    """Begin a run on some day: its folder, and the stage that freezes the prompts."""
    noon = 12 * 3600
    monkeypatch.setenv(LAUNCHED, str((day - date(1970, 1, 1)).days * 86400 + noon))
    stage = builders.prepare_stage(config)
    with opened(config):
        prepare.run(stage)
    return stage


def stages(config: RunConfig) -> dict[tuple[int, str], Stage]:
    """The stages of a run that has begun, as they would be run now; nothing but `prepare` is made."""
    walked: dict[tuple[int, str], Stage] = {}

    def visit(stage: Stage) -> store.Manifest:
        walked[stage.round, stage.name] = stage
        return stage.finished() or builders.pretended(stage)

    walk(config, visit)
    return walked


def test_all_stages_write_the_date_of_the_start(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = begin(config, monkeypatch, START)
    manifest = prepared.finished()
    assert manifest and manifest.outputs["policy.template_date"] == "2026-01-31"
    walked = stages(config)
    for name in ("generate", "evaluate"):
        policy = walked[1, name].config.policy
        assert walked[1, name].settings["rendering"]["template_date"] == policy.template_date == "2026-01-31"
        assert render(load_tokenizer(Path(policy.model)), "hi", policy).text.startswith("<s>2026-01-31<|user|>")
    assert read_config(config.folder).policy.template_date is None
    assert RunState(read_config(config.folder)).is_finished


def test_the_users_own_texts_have_the_date_too(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    rated = builders.write_jsonl(
        Path(config.runs_dir).parent / "rated.jsonl", [{"prompt": "p", "completion": "c", "good": True}]
    )
    stage = begin(builders.changed(config, prompts__feedback=str(rated)), monkeypatch, START)
    (row,) = store.read_table(stage.folder, "feedback").to_pylist()
    assert row["prompt"].startswith("<s>2026-01-31<|user|>p")


def test_a_fork_and_an_evaluation_keep_the_date_of_their_run(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(config, monkeypatch, START)
    stages(config)
    new = builders.changed(config, run="new")
    every = fork.fork(config, new, None)
    assert not every.differing
    assert RunState(new).is_finished
    again = builders.changed(config, run="again", train__learning_rate=0.5)
    fork.fork(new, again, (1, "train"))
    assert as_begun(again).policy.template_date == "2026-01-31"
    settings = standalone.settings(None, ["test:1"], Path(config.runs_dir), None)
    assert settings.policy.template_date == "2026-01-31"


def test_a_run_that_begins_on_another_day_is_another_run_and_a_date_that_is_named_wins(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    later, named = builders.changed(config, run="later"), builders.changed(config, policy__template_date="2025-05-05")
    begin(later, monkeypatch, LATER)
    manifest = begin(named, monkeypatch, START).finished()
    assert manifest and not any(name.endswith(".template_date") for name in manifest.outputs)
    assert stages(later)[1, "generate"].config.policy.template_date == "2026-02-01"
    assert stages(named)[1, "generate"].config.policy.template_date == "2025-05-05"


def test_a_template_without_a_date_leaves_fingerprints_as_they_were(
    config: RunConfig, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = builders.changed(config, policy__model=str(tiny))
    assert not conversations.is_dated(Inputs(plain))
    stage = begin(plain, monkeypatch, START)
    assert as_begun(plain) == plain
    assert stages(plain)[1, "generate"].settings["rendering"] == {"prompt_format": "chat", "system": None}
    assert stage.finished()


def test_a_date_that_only_conversations_with_a_system_message_get_is_found(config: RunConfig, dated: Path) -> None:
    (dated / "chat_template.jinja").write_text(
        (dated / "chat_template.jinja")
        .read_text()
        .replace(TODAY, "{% if messages|length > 1 %}" + TODAY + "{% endif %}")
    )
    assert not conversations.is_dated(Inputs(config))
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the river"}]
    builders.write_jsonl(Path(config.prompts.train), [{"prompt": talk}])
    assert conversations.is_dated(Inputs(config))


@pytest.mark.parametrize("many", [False, True])
def test_a_reward_models_template_keeps_the_date_too(
    config: RunConfig, tiny: Path, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:
    judge = tiny_reward.make(tmp_path / "judge", tokenizer)
    edit_template(judge, "{{ bos_token }}", "{{ bos_token }}" + TODAY)
    reward: dict[str, Any] = {"kind": "model", "model": str(judge)}
    if many:
        reward = {"kind": "ensemble", "members": [{"reward": {"kind": "repetition"}}, {"reward": reward}]}
    judged = builders.changed(config, policy__model=str(tiny), reward=reward)
    manifest = begin(judged, monkeypatch, START).finished()
    name = "reward.members.1.template_date" if many else "reward.template_date"
    assert manifest and manifest.outputs[name] == "2026-01-31"
    assert "policy.template_date" not in manifest.outputs
    scoring = stages(judged)[1, "score"].config.reward
    part = scoring.members[1].reward if scoring.kind == "ensemble" else scoring
    assert part.kind == "model"
    read, tokens = reward_model.reads(part, "the river", "flows")
    assert read.decode(tokens).startswith("<s>2026-01-31<|user|>the river")
