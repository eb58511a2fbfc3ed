"""Tools of a prompt go from the user's file, in any form, to the policy's chat template, or are refused and counted."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import prompts, store
from data.errors import BadInput
from data.importing import Request, import_data
from data.readers import prompt_id, read_feedback, read_jsonl, read_preferences
from pco.config.reward import ModelReward
from pco.config.run import RunConfig
from pco.models.rendering import load_tokenizer, render
from pco.rewards import model as reward_model
from pco.stages import prepare
from tests import builders, tiny_reward
from tests.pco.doctor.test_doctor import edit_template, told

SEARCH = {"type": "function", "function": {"name": "search", "parameters": {"type": "object", "properties": {}}}}
CLOCK = {"name": "clock", "description": "the time"}
ASKED = {"role": "user", "content": "the river"}
SYSTEM = {"role": "system", "content": "Be brief."}
WRITES = "{% if tools %}{% for t in tools %}{{ '[' + (t.function or t).name + ']' }}{% endfor %}{% endif %}"


def tools(*schemas: Any) -> dict[str, str]:
    return {"role": "tools", "content": json.dumps(schemas)}


@pytest.fixture
def calling(tiny: Path, tmp_path: Path) -> Path:
    """A model whose chat template writes the names of tools."""
    model = shutil.copytree(tiny, tmp_path / "model")
    edit_template(model, "{{ bos_token }}", "{{ bos_token }}" + WRITES)
    return model


@pytest.fixture
def config(calling: Path, tmp_path: Path) -> RunConfig:
    builders.write_prompts(tmp_path, ["the river"], ["the old bridge"])
    return builders.config(tmp_path, calling, generate__max_tokens=16)


@pytest.mark.parametrize("written", [[SEARCH, CLOCK], json.dumps([SEARCH, CLOCK])], ids=["list", "text"])
@pytest.mark.parametrize("prompt", ["the river", [ASKED]], ids=["text", "messages"])
def test_the_tools_of_a_row_are_the_first_message_of_its_prompt(tmp_path: Path, prompt: Any, written: Any) -> None:
    file = builders.write_jsonl(tmp_path / "p.jsonl", [{"prompt": prompt, "tools": written}])
    (row,) = read_jsonl(file, key="prompt")
    assert row["messages"] == [tools(SEARCH, CLOCK), ASKED]
    assert row["prompt_id"] != prompt_id("the river")


@pytest.mark.parametrize("nothing", [None, [], "[]", "", "  ", {}])
def test_no_tools_leave_a_prompt_as_it_is(tmp_path: Path, nothing: Any) -> None:
    file = builders.write_jsonl(tmp_path / "p.jsonl", [{"prompt": "the river", "tools": nothing}])
    (row,) = read_jsonl(file, key="prompt")
    assert (row["messages"], row["prompt_id"]) == (None, prompt_id("the river"))


def test_preferences_and_feedback_have_tools_as_well(tmp_path: Path) -> None:
    told = [ASKED, {"role": "assistant", "content": "a"}], [ASKED, {"role": "assistant", "content": "b"}]
    rows = [
        {"prompt": "the river", "chosen": "a", "rejected": "b", "tools": [CLOCK]},
        {"chosen": told[0], "rejected": told[1], "tools": [CLOCK]},
    ]
    pairs = read_preferences(builders.write_jsonl(tmp_path / "pairs.jsonl", rows))
    rated = [{"prompt": "the river", "completion": "a", "good": True, "tools": [CLOCK]}]
    feedback = read_feedback(builders.write_jsonl(tmp_path / "rated.jsonl", rated))
    assert [row["messages"] for row in (*pairs, *feedback)] == [[tools(CLOCK), ASKED]] * 3


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("search", "not a JSON list of tools"),
        ([{"description": "no name"}], "each with a name"),
        ({"name": "search"}, "not a list of tools"),
        (7, "not a list of tools"),
        ([{"name": "a", "parameters": {"properties": {"b": None}}}], "parameters that are null"),
    ],
)
def test_what_is_no_list_of_tools_is_refused_by_a_run_and_counted_by_an_import(
    tmp_path: Path, wrong: Any, why: str
) -> None:
    file = builders.write_jsonl(tmp_path / "p.jsonl", [{"prompt": "p", "tools": wrong}, {"prompt": "q"}])
    with pytest.raises(BadInput, match=f"row 1|line 1.*{why}"):
        read_jsonl(file, key="prompt")
    done = import_data(Request(str(file), "prompts", tmp_path / "out.parquet"))
    ((reason, count),) = done.dropped.items()
    assert count == 1
    assert why in reason


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_an_import_keeps_tools_and_a_run_reads_them_from_it(tmp_path: Path, suffix: str) -> None:
    file, out = tmp_path / f"source{suffix}", tmp_path / "out.parquet"
    rows = [{"prompt": "the river", "tools": json.dumps([SEARCH])}, {"prompt": "the old bridge", "tools": ""}]
    if suffix == ".csv":
        with file.open("w", newline="") as opened:
            csv.DictWriter(opened, list(rows[0])).writerows([{name: name for name in rows[0]}, *rows])
    else:
        builders.write_jsonl(file, rows)
    assert not import_data(Request(str(file), "prompts", out)).dropped
    assert read_jsonl(out, key="prompt")[0]["messages"] == [tools(SEARCH), ASKED]
    again = tmp_path / "again.parquet"
    import_data(Request(str(out), "prompts", again))
    assert read_jsonl(again, key="prompt")[0]["messages"] == [tools(SEARCH), ASKED]
    without = tmp_path / "without.parquet"
    import_data(Request(str(file), "prompts", without, ignored=["tools"]))
    assert read_jsonl(without, key="prompt")[0]["messages"] is None
    single = import_data(Request(str(file), "prompts", tmp_path / "single.parquet", turns="single"))
    assert single.dropped == {"tools or turns of tools": 1}


@given(st.booleans(), st.sampled_from(["own", "merge"]), st.sampled_from([None, "Rhyme."]))
def test_tools_reach_the_template_and_change_no_turn(own_system: bool, role: Any, system: str | None) -> None:
    turns = [SYSTEM, ASKED] if own_system else [ASKED]
    given_tools = [tools(CLOCK), *turns]
    as_given = prompts.as_messages(given_tools, system)
    assert as_given == [tools(CLOCK), *prompts.as_messages(turns, system)]
    assert prompts.without_tools(as_given) == ([tools(CLOCK)], prompts.as_messages(turns, system))


def test_a_run_renders_tools_for_policy_and_reward(config: RunConfig, tmp_path: Path, tokenizer: Any) -> None:
    builders.write_jsonl(Path(config.prompts.train), [{"prompt": [SYSTEM, ASKED], "tools": [SEARCH, CLOCK]}])
    rated = builders.write_jsonl(
        tmp_path / "rated.jsonl", [{"prompt": "p", "completion": "c", "good": True, "tools": [CLOCK]}]
    )
    stage = builders.prepare_stage(builders.changed(config, prompts__feedback=str(rated)))
    prepare.run(stage)
    row, *_ = store.read_table(stage.folder, "prompts").to_pylist()
    text = render(load_tokenizer(Path(config.policy.model)), prompts.asked(row), config.policy).text
    assert text == "<s>[search][clock]<|system|>Be brief.</s><|user|>the river</s><|assistant|>"
    (feedback,) = store.read_table(stage.folder, "feedback").to_pylist()
    assert feedback["prompt"].startswith("<s>[clock]<|user|>p</s>")
    judge = tiny_reward.make(tmp_path / "judge", tokenizer)
    edit_template(judge, "{{ bos_token }}", "{{ bos_token }}" + WRITES)
    read, tokens = reward_model.reads(ModelReward(model=str(judge)), prompts.asked(row), "c")
    assert read.decode(tokens).startswith("<s>[search][clock]<|system|>")


def test_a_template_that_leaves_tools_out_is_refused_with_the_number_of_prompts(config: RunConfig, tiny: Path) -> None:
    rows = [{"prompt": [ASKED], "tools": [CLOCK]}, {"prompt": "q", "tools": [SEARCH]}, {"prompt": "r"}]
    builders.write_jsonl(Path(config.prompts.train), rows)
    assert not told(config, "fault")
    fault = told(config, "fault", policy__model=str(tiny))["conversations"]
    assert "leaves out the tools, or parts of them, in 2 of 2 conversations" in fault


def test_a_reward_models_template_that_leaves_tools_out_is_warned_of(
    config: RunConfig, tmp_path: Path, tokenizer: Any
) -> None:
    builders.write_jsonl(Path(config.prompts.train), [{"prompt": [ASKED], "tools": [CLOCK]}, {"prompt": "r"}])
    judge = tiny_reward.make(tmp_path / "judge", tokenizer)
    reward = {"kind": "model", "model": str(judge)}
    assert "leaves out the tools" in told(config, "warning", reward=reward)["reward's conversations"]
    edit_template(judge, "{{ bos_token }}", "{{ bos_token }}" + WRITES)
    assert "reward's conversations" not in told(config, "warning", reward=reward)


def test_raw_prompts_have_no_tools(config: RunConfig) -> None:
    builders.write_jsonl(Path(config.prompts.train), [{"prompt": "the river", "tools": [CLOCK]}])
    assert "raw cannot render" in str(told(config, "fault", policy__prompt_format="raw"))
