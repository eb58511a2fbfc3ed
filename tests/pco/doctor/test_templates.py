"""What is wrong with a chat template is named before a run, for prompts of any number of turns."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pco.config.run import RunConfig
from pco.doctor import conversations
from pco.doctor.inputs import Inputs
from pco.models.rendering import load_tokenizer, render
from tests import builders, tiny_reward
from tests.pco.doctor.test_doctor import edit_json, edit_template, no_system, refuses_system, told

CHAT = [
    {"role": "user", "content": "the river"},
    {"role": "assistant", "content": "<think>A road?</think>It follows the road."},
    {"role": "user", "content": "and then?"},
]
SYSTEM = {"role": "system", "content": "Be brief."}


def talking(config: RunConfig, *prompts: Any) -> None:
    """Give the run these training prompts."""
    builders.write_jsonl(Path(config.prompts.train), [{"prompt": prompt} for prompt in prompts])


def refuses(model: Path, condition: str, said: str) -> None:
    edit_template(
        model,
        "{% for m in messages %}",
        f"{{% for m in messages %}}{{% if {condition} %}}{{{{ raise_exception('{said}') }}}}{{% endif %}}",
    )


def test_a_sound_template_writes_conversations_whole(config: RunConfig) -> None:
    talking(config, "a", CHAT, [SYSTEM, *CHAT])
    assert "writes 2 conversations whole" in told(config, "ok")["conversations"]


def test_a_template_that_needs_alternate_roles_is_named_with_the_roles_it_refused(
    config: RunConfig, model: Path
) -> None:
    refuses(model, "not loop.first and m['role'] == messages[loop.index0 - 1]['role']", "roles must alternate")
    talking(config, CHAT)
    assert not told(config, "fault", policy__model=str(model))
    talking(config, [CHAT[0], CHAT[2]])
    fault = told(config, "fault", policy__model=str(model))["lengths"]
    assert "refused a dialogue of ['user', 'user'] (TemplateError: roles must alternate)" in fault
    assert "Correct the template" in fault


def test_a_template_that_refuses_system_messages_takes_them_merged_into_the_users(
    config: RunConfig, model: Path
) -> None:
    refuses_system(model)
    talking(config, [SYSTEM, *CHAT])
    settings = {"policy__model": str(model)}
    assert "set policy.system_role: merge" in told(config, "fault", **settings)["lengths"]
    assert not told(config, "fault", **settings, policy__system_role="merge", policy__system="Rhyme.")


def test_a_template_that_fails_on_its_own_is_refused_by_name(config: RunConfig, model: Path) -> None:
    edit_template(model, "m['content']", "m['content'].no_such_method()")
    fault = told(config, "fault", policy__model=str(model))["lengths"]
    assert f"{model}: its chat template refused a dialogue of ['user'] (UndefinedError" in fault


def test_a_template_that_is_no_template_is_refused_by_name(config: RunConfig, model: Path) -> None:
    (model / "chat_template.jinja").write_text("{% for m in")
    assert "(TemplateSyntaxError" in told(config, "fault", policy__model=str(model))["lengths"]


def test_no_template_and_several_without_a_default_are_at_fault(config: RunConfig, model: Path) -> None:
    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").unlink()
    assert "has no chat template" in str(told(config, "fault", policy__model=str(model)))
    named = [{"name": name, "template": template} for name in ("rag", "tool_use")]
    edit_json(model / "tokenizer_config.json", chat_template=named)
    fault = str(told(config, "fault", policy__model=str(model)))
    assert "several chat templates (rag, tool_use) and none called default" in fault
    edit_json(model / "tokenizer_config.json", chat_template=[*named, {"name": "default", "template": template}])
    assert not told(config, "fault", policy__model=str(model))


def test_a_template_that_writes_todays_date_is_told_of_unless_it_is_told_a_date(config: RunConfig, model: Path) -> None:
    edit_template(model, "{{ bos_token }}", "{{ bos_token }}{{ strftime_now('%d %b %Y') }}")
    settings = {"policy__model": str(model)}
    assert "today's date" in told(config, "warning", **settings)["conversations"]
    dated = builders.changed(config, **settings, policy__template_date="2026-01-31")
    assert not told(dated, "fault")
    assert "conversations" not in told(dated, "warning")
    assert render(load_tokenizer(model), "hi", dated.policy).text == "<s>31 Jan 2026<|user|>hi</s><|assistant|>"


def rated(config: RunConfig, *answers: str) -> RunConfig:
    """The run with feedback of these answers."""
    file = Path(config.prompts.train).with_name("rated.jsonl")
    builders.write_jsonl(file, [{"prompt": "the river", "completion": answer, "good": True} for answer in answers])
    return builders.changed(config, prompts__feedback=str(file))


def test_a_template_that_cuts_answers_is_warned_of_where_the_users_answers_have_what_it_cuts(
    config: RunConfig, model: Path
) -> None:
    settings = {"policy__model": str(model)}
    assert "writes answers as they are" in told(config, "ok", **settings)["policy's answers"]
    edit_template(model, "m['content']", "(m['content'].split('</think>')[-1] | trim)")
    assert (
        "cuts white space around an answer and the `<think>` part" in told(config, "ok", **settings)["policy's answers"]
    )
    sound = rated(config, "It flows.", "to the sea")
    assert "policy's answers" not in told(sound, "warning", **settings)
    spoilt = rated(config, "It flows.", "\nto the sea", "<think>?</think>No.", "then ", "on")
    assert "3 of 5 answers of prompts.preferences and" in told(spoilt, "warning", **settings)["policy's answers"]


@pytest.mark.parametrize("change", ["upper", "replace('\\n', ' ') | replace(',', ';')"])
def test_a_template_that_writes_another_answer_is_warned_of(config: RunConfig, model: Path, change: str) -> None:
    edit_template(model, "m['content']", f"(m['content'] | {change} if m['role'] == 'assistant' else m['content'])")
    warning = told(config, "warning", policy__model=str(model))["policy's answers"]
    assert "writes an answer as another text" in warning


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r")))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_template_that_writes_answers_as_they_are_changes_none(config: RunConfig, answer: str) -> None:
    assert conversations._writes(Inputs(config), "the river", answer)


def test_what_a_template_leaves_out_of_conversations_is_counted_by_role(config: RunConfig, model: Path) -> None:
    talking(config, CHAT, [{**turn, "content": turn["content"].rpartition(">")[2] + "!"} for turn in CHAT])
    edit_template(model, "m['content']", "m['content'].split('</think>')[-1]")
    settings = {"policy__model": str(model)}
    assert (
        "leaves out turns of the assistant, or parts of them, in 1 of 2"
        in told(config, "warning", **settings)["conversations"]
    )
    no_system(model)
    talking(config, [SYSTEM, *CHAT])
    assert "leaves out turns of the system" in told(config, "fault", **settings)["conversations"]


def test_turns_of_tools_that_the_template_drops_are_at_fault(config: RunConfig, model: Path) -> None:
    talking(config, [*CHAT[:2], {"role": "tool", "content": "4 roads"}])
    assert not told(config, "fault", policy__model=str(model))
    edit_template(model, "{% for m in messages %}", "{% for m in messages if m['role'] != 'tool' %}")
    assert "leaves out turns of the tool" in told(config, "fault", policy__model=str(model))["conversations"]


def test_a_reward_models_template_is_looked_at_as_well(config: RunConfig, tmp_path: Path, tokenizer: Any) -> None:
    judge = tiny_reward.make(tmp_path / "judge", tokenizer)
    reward = {"kind": "model", "model": str(judge)}
    talking(config, CHAT)
    assert (
        "takes conversations of 1 kinds beside single prompts"
        in told(config, "ok", reward=reward)["reward's conversations"]
    )
    edit_template(judge, "{{ bos_token }}", "{{ bos_token }}{{ strftime_now('%d %b %Y') }}")
    assert "reward.template_date names another" in told(config, "warning", reward=reward)["reward's conversations"]
    edit_template(judge, "m['content']", "m['content'].split('</think>')[-1]")
    assert "drops the `<think>` part" in told(config, "warning", reward=reward)["reward's conversations"]
    refuses(judge, "loop.length > 2", "one question, one answer")
    assert "(TemplateError: one question, one answer)" in told(config, "fault", reward=reward)["reward's conversations"]
