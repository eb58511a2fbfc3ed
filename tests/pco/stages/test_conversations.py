"""Conversations as prompts: frozen with their turns, and rendered as the policy and each reward read them."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from data import store
from data.errors import BadInput
from data.prompts import readable
from data.rows import Message
from pco import rewards
from pco.config.reward import ModelReward, PythonReward
from pco.config.run import RunConfig
from pco.evaluation import export
from pco.models.sampling import sampled
from pco.rewards import model
from pco.stage import Stage
from pco.stages import prepare
from pco.stages.completions import read_prompts
from tests import builders, tiny_reward

HELDOUT = [f"a grey heron {i}" for i in range(8)]
TABLES = ("prompts", "preferences", "feedback")


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


CHAT = [user("the river"), assistant("It follows the road."), user("and then?")]
SYSTEM: Message = {"role": "system", "content": "Be brief."}


def config(folder: Path, tiny: Path, prompts: list[Any], **settings: Any) -> RunConfig:
    """A run of some prompts, which its preferences and its feedback are of, too."""
    builders.write_prompts(folder, [], HELDOUT)
    builders.write_jsonl(folder / "train.jsonl", [{"prompt": prompt} for prompt in prompts])
    pairs = [{"prompt": prompt, "chosen": "good", "rejected": "bad"} for prompt in prompts]
    builders.write_jsonl(folder / "preferences.jsonl", pairs)
    ratings = [{"prompt": prompt, "completion": "good", "good": True} for prompt in prompts]
    builders.write_jsonl(folder / "feedback.jsonl", ratings)
    files = {f"prompts__{name}": str(folder / f"{name}.jsonl") for name in ("preferences", "feedback")}
    return builders.config(folder, tiny, generate__max_tokens=16, replay__rounds=1, **files, **settings)


def prepared(folder: Path, tiny: Path, prompts: list[Any], **settings: Any) -> Stage:
    stage = builders.prepare_stage(config(folder, tiny, prompts, **settings))
    prepare.run(stage)
    return stage


def tables(stage: Stage) -> dict[str, list[dict[str, Any]]]:
    """The rows of its tables, without the digest of the user's file."""
    read = {name: store.read_table(stage.folder, name).to_pylist() for name in TABLES}
    return {name: [{**row, "policy": None} for row in rows] for name, rows in read.items()}


def test_one_user_message_gives_the_same_tables_as_its_text(tmp_path: Path, tiny: Path) -> None:
    texts = prepared(tmp_path / "texts", tiny, ["the river", "a small town"], policy__system="Be brief.")
    messages = prepared(
        tmp_path / "messages", tiny, [[user("the river")], [user("a small town")]], policy__system="Be brief."
    )
    assert tables(texts) == tables(messages)


def test_conversations_are_frozen_with_their_turns_and_rendered_with_the_chat_template(
    tmp_path: Path, tiny: Path, tokenizer: Any
) -> None:
    stage = prepared(tmp_path, tiny, ["her garden", CHAT, [SYSTEM, *CHAT]], policy__system="Rhyme.")
    frozen = tables(stage)
    assert [row["messages"] for row in frozen["prompts"][:3]] == [None, CHAT, [SYSTEM, *CHAT]]
    assert [row["prompt"] for row in frozen["prompts"][1:3]] == [readable(CHAT), readable([SYSTEM, *CHAT])]
    said = "<|user|>the river</s><|assistant|>It follows the road.</s><|user|>and then?</s><|assistant|>"
    expected = [
        "<s><|system|>Rhyme.</s><|user|>her garden</s><|assistant|>",
        f"<s><|system|>Rhyme.</s>{said}",
        f"<s><|system|>Be brief.</s>{said}",
    ]
    for name in ("preferences", "feedback"):
        assert [row["prompt"] for row in frozen[name]] == expected
        assert [row["messages"] for row in frozen[name]] == [None, CHAT, [SYSTEM, *CHAT]]
    requests = [sampled(row, tokenizer, stage.config, 1, 1)[0] for row in read_prompts(_after(stage), "train")]
    assert [request.prompt.text for request in requests] == expected
    assert [request.prompt.token_ids for request in requests] == [
        row["prompt_token_ids"] for row in frozen["preferences"]
    ]


def _after(stage: Stage) -> Stage:
    return builders.stage("generate", stage.config, {"prompts": builders.result(stage)})


def test_a_system_message_is_merged_into_the_first_user_turn_if_that_is_asked_for(tmp_path: Path, tiny: Path) -> None:
    merged = {"policy__system": "Rhyme.", "policy__system_role": "merge"}
    stage = prepared(tmp_path, tiny, ["her garden", [SYSTEM, *CHAT]], **merged)
    texts = [row["prompt"] for row in tables(stage)["feedback"]]
    assert texts[0] == "<s><|user|>Rhyme.\n\nher garden</s><|assistant|>"
    assert texts[1].startswith("<s><|user|>Be brief.\n\nthe river</s><|assistant|>It follows")


def test_new_settings_of_the_policy_are_in_fingerprints_once_they_are_set(tmp_path: Path) -> None:
    builders.write_prompts(tmp_path, ["a"], ["b"])
    plain = builders.config(tmp_path)
    changed = [
        builders.changed(plain, policy__system_role="merge"),
        builders.changed(plain, policy__template_date="2026-01-31"),
    ]
    stages = [builders.stage("generate", one) for one in (plain, *changed)]
    assert len({stage.fingerprint for stage in stages}) == 3
    assert set(stages[0].settings["rendering"]) == {"prompt_format", "system"}


@pytest.mark.parametrize("value", ["2026-01-31", date(2026, 1, 31)])
def test_the_date_of_a_template_is_a_date(tmp_path: Path, value: object) -> None:
    raw = builders.raw_config(tmp_path)
    raw["policy"]["template_date"] = value
    assert RunConfig.model_validate(raw).policy.template_date == "2026-01-31"
    raw["policy"]["template_date"] = "tomorrow"
    with pytest.raises(ValidationError, match="policy.template_date"):
        RunConfig.model_validate(raw)


def test_a_conversation_that_is_held_out_and_trained_on_is_leakage(tmp_path: Path, tiny: Path) -> None:
    settings = config(tmp_path, tiny, [CHAT])
    shouted = [{**turn, "content": turn["content"].upper()} for turn in CHAT]
    builders.write_jsonl(tmp_path / "heldout.jsonl", [{"prompt": shouted}])
    with pytest.raises(BadInput, match=r"heldout\.jsonl: prompt .* is also trained on"):
        prepare.run(builders.prepare_stage(settings))


def test_raw_prompts_cannot_be_conversations(tmp_path: Path, tiny: Path) -> None:
    settings = config(tmp_path, tiny, ["a"], policy__prompt_format="raw")
    builders.write_jsonl(tmp_path / "feedback.jsonl", [{"prompt": CHAT, "completion": "good", "good": True}])
    with pytest.raises(BadInput, match="raw cannot render a conversation .*'the river'.*prompt_format: chat"):
        prepare.run(builders.prepare_stage(settings))


# Rewards.


def judged(stage: Stage, config: Any) -> list[float]:
    """The rewards of one completion of each training prompt."""
    rows = [
        {**builders.candidate_row(), "prompt_id": row["prompt_id"], "completion": "and on"}
        for row in read_prompts(_after(stage), "train")
    ]
    return [score.value for score in rewards.score_rows(rewards.load(config), _after(stage), rows)]


def test_a_reward_model_reads_all_turns_in_its_own_template(tmp_path: Path, tiny: Path, tokenizer: Any) -> None:
    folder = tiny_reward.make(tmp_path / "judge", tokenizer)
    reward = ModelReward(model=str(folder), system="Judge fairly.")
    whole = tokenizer.decode(model.rendered(tokenizer, [SYSTEM, *CHAT], "and on", reward))
    said = "<|user|>the river</s><|assistant|>It follows the road.</s><|user|>and then?</s>"
    assert whole == f"<s><|system|>Be brief.</s>{said}<|assistant|>and on</s>"
    assert "<|system|>Judge fairly.</s><|user|>the river" in tokenizer.decode(
        model.rendered(tokenizer, CHAT, "and on", reward)
    )
    stage = prepared(tmp_path, tiny, [CHAT, readable(CHAT), [SYSTEM, *CHAT]])
    plain = ModelReward(model=str(folder))
    assert len(set(judged(stage, plain))) == 3
    direct = rewards.load(plain).score([{"source_prompt": "", "messages": CHAT, "completion": "and on"}])
    assert judged(stage, plain)[0] == pytest.approx(direct[0].value, abs=1e-5)


def test_a_reward_model_without_a_template_reads_no_conversation(tmp_path: Path, tiny: Path, tokenizer: Any) -> None:
    folder = tiny_reward.make(tmp_path / "judge", tokenizer)
    (folder / "chat_template.jinja").unlink()
    settings = config(tmp_path, tiny, [CHAT], reward={"kind": "model", "model": str(folder)})
    with pytest.raises(BadInput, match=r"no chat template, so it cannot read a prompt of 3 messages \(`reward\.model`"):
        prepare.run(builders.prepare_stage(settings))


def test_a_function_is_given_the_messages_and_the_dialogue(tmp_path: Path, tiny: Path) -> None:
    code = (
        "def judge(rows):\n"
        "    return [len(row['messages'] or []) + ('User: and then?' in row['source_prompt']) / 2 for row in rows]\n"
    )
    (tmp_path / "turns_reward.py").write_text(code)
    stage = prepared(tmp_path, tiny, ["a", CHAT])
    assert judged(stage, PythonReward(function="turns_reward:judge", folder=str(tmp_path))) == [0, 3.5]


def test_what_other_evaluators_read_has_the_turns(tmp_path: Path, tiny: Path) -> None:
    settings = config(tmp_path, tiny, ["a"])
    builders.write_jsonl(tmp_path / "heldout.jsonl", [{"prompt": CHAT}])
    stage = builders.prepare_stage(settings)
    prepare.run(stage)
    (row,) = read_prompts(_after(stage), "heldout")
    candidate = {**builders.candidate_row(mode="greedy"), "prompt_id": row["prompt_id"]}
    evaluation = builders.finished(tmp_path / "evaluation", {"candidates": [candidate]}, "evaluate")
    (output,) = export.alpaca_eval(settings, evaluation.folder, "tiny")
    assert output["instruction"] == readable(CHAT)
