"""`pco run` on prompts of several turns, with system messages, from their import to the report."""

import json
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from data import store
from pco.specs import StageName
from pco.stage import Stage
from tests import builders, tiny_model
from tests.e2e.conftest import Case

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

SYSTEM = "Tell of the river."
OWN_SYSTEM = "Tell of the night train."


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _dialogues(seed: int, count: int) -> list[list[dict[str, str]]]:
    """Conversations of two questions that differ; every third brings a system message of its own."""
    questions, answers, more = (tiny_model.sentences(count, seed + i) for i in range(3))
    dialogues = []
    for i, (question, answer, then) in enumerate(zip(questions, answers, more, strict=True)):
        system = [] if i % 3 else [_turn("system", OWN_SYSTEM)]
        dialogues.append(
            [*system, _turn("user", f"{seed} {i} {question}"), _turn("assistant", answer), _turn("user", then)]
        )
    return dialogues


def _rows(case: Case, number: int, stage: StageName, table: str) -> list[dict[str, Any]]:
    return store.read_table(Stage(stage, number, case.config, {}).folder, table).to_pylist()


@pytest.fixture(scope="module")
def finished(make_case: Callable[..., Case]) -> Case:
    """Two rounds on imported conversations, with preferences and feedback on others."""
    case = make_case(policy__prompt_format="chat", policy__system=SYSTEM, generate__max_tokens=16)
    folder = case.file.parent
    source = builders.write_jsonl(folder / "chats.jsonl", [{"messages": chat} for chat in _dialogues(100, 24)])
    imported = str(folder / "train.parquet")
    case.tell("data", "import", str(source), "--kind", "prompts", "--out", imported)
    builders.write_jsonl(folder / "heldout.jsonl", [{"prompt": chat} for chat in _dialogues(200, 8)])
    good, bad = _turn("assistant", "the river follows."), _turn("assistant", "the the the the")
    pairs = [{"chosen": [*chat, good], "rejected": [*chat, bad]} for chat in _dialogues(300, 6)]
    ratings = [{"prompt": chat, "completion": "the river", "good": True} for chat in _dialogues(400, 4)]
    preferences = builders.write_jsonl(folder / "preferences.jsonl", pairs)
    feedback = builders.write_jsonl(folder / "feedback.jsonl", ratings)
    files = {"train": imported, "preferences": str(preferences), "feedback": str(feedback)}
    status, output = case.run(*(f"prompts.{name}={path}" for name, path in files.items()), "replay.rounds=2")
    assert status == 0, output
    return case


def test_every_stage_reads_all_turns_and_the_right_system_message(finished: Case) -> None:
    prompts = {row["prompt_id"]: row["messages"] for row in _rows(finished, 0, "prepare", "prompts")}
    for number, stage in ((1, "generate"), (2, "generate"), (0, "evaluate"), (2, "evaluate")):
        for row in _rows(finished, number, stage, "candidates"):  # type: ignore[arg-type]
            messages = prompts[row["prompt_id"]]
            default = [] if messages[0]["role"] == "system" else [_turn("system", SYSTEM)]
            said = "".join(f"<|{turn['role']}|>{turn['content']}</s>" for turn in [*default, *messages])
            assert row["prompt"] == f"<s>{said}<|assistant|>"


def test_preferences_and_feedback_of_conversations_are_trained_on(finished: Case) -> None:
    replayed = _rows(finished, 1, "pair", "replay")
    assert {row["chosen"] for row in replayed} == {"the river follows."}
    assert all(row["prompt"].count("<|user|>") == 2 for row in replayed)
    assert sum(row["feedback"] for row in _rows(finished, 1, "train", "train_log")) > 0


def test_the_report_and_the_tables_show_the_turns(finished: Case) -> None:
    (dialogue, *_) = [row for row in _rows(finished, 0, "prepare", "prompts") if row["messages"]]
    assert f"[system] {OWN_SYSTEM}" in finished.tell("show", str(finished.folder), "prompts", "--limit", "1")
    page = unescape((finished.folder / "report.html").read_text(encoding="utf-8"))
    heldout = [row for row in _rows(finished, 0, "prepare", "prompts") if row["split"] == "heldout"]
    assert any(row["prompt"] in page for row in heldout)
    assert any(row["prompt"] in page for row in _rows(finished, 0, "prepare", "prompts") if row["split"] == "train")
    assert dialogue["prompt"].startswith(f"System: {OWN_SYSTEM}\n\nUser: ")


def test_an_export_has_the_dialogues_as_instructions(finished: Case, tmp_path: Path) -> None:
    out = tmp_path / "outputs.json"
    finished.tell("export", f"{finished.folder}:2", "--out", str(out))
    instructions = [row["instruction"] for row in json.loads(out.read_text())]
    assert len(instructions) == 8
    assert all(text.count("User: ") == 2 and text.count("Assistant: ") == 1 for text in instructions)
