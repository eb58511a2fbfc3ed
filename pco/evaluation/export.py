"""What other people's evaluators read and write: AlpacaEval's `model_outputs.json`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import files, sources, store
from data.errors import BadInput
from pco.config.run import RunConfig
from pco.models.sampling import GREEDY
from pco.stage import Stage


@dataclass(frozen=True)
class Answer:
    """A greedy completion and its prompt as the user wrote it."""

    prompt: str
    text: str


def answers(config: RunConfig, evaluation: Path) -> dict[str, Answer]:
    """The greedy completions of an evaluation by the ids of their prompts."""
    prompts = store.read_table(Stage("prepare", 0, config, {}).folder, "prompts").to_pylist()
    written = {row["prompt_id"]: row["prompt"] for row in prompts if row["split"] == "heldout"}
    candidates = store.read_table(evaluation, "candidates").to_pylist()
    return {
        row["prompt_id"]: Answer(written[row["prompt_id"]], row["completion"])
        for row in candidates
        if row["mode"] == GREEDY
    }


def alpaca_eval(config: RunConfig, evaluation: Path, generator: str) -> list[dict[str, str]]:
    """The greedy completions of an evaluation as AlpacaEval's `model_outputs.json` has them (arXiv 2404.04475).

    `instruction` is the prompt as the user wrote it, `generator` the name of the policy.
    """
    return [
        {"instruction": answer.prompt, "output": answer.text, "generator": generator}
        for answer in answers(config, evaluation).values()
    ]


def outputs(path: Path) -> dict[str, str]:
    """The outputs in a `model_outputs.json` by their instructions.

    Raises BadInput naming the row that is none, or that has the instruction of another.
    """
    by_instruction: dict[str, str] = {}
    for where, row in rows_of(path):
        instruction, output = (text_of(row, name, where) for name in ("instruction", "output"))
        if instruction in by_instruction:
            raise BadInput(f"{where}: an earlier row has the same `instruction`. Remove one of the two.")
        by_instruction[instruction] = output
    return by_instruction


def rows_of(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a JSON or JSONL file with their places. Raises BadInput for a file that has none."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file.")
    source = sources.open_file(path, fallback=".json")
    rows = [(source.where(number), row) for number, row in source.rows]
    if not rows:
        raise BadInput(f"{path}: holds no rows. Expected a JSON list of objects, as AlpacaEval writes it.")
    return rows


def text_of(row: Mapping[str, Any], name: str, where: str) -> str:
    """The text under a key. Raises BadInput."""
    text = row.get(name)
    if not isinstance(text, str):
        keys = ", ".join(map(repr, row)) or "none"
        raise BadInput(f"{where}: expected a text under `{name}`, as AlpacaEval has it; found keys {keys}.")
    return text


def write(path: Path, outputs: list[dict[str, str]]) -> None:
    """Write the JSON file that the public evaluator is given.

    Raises BadInput when there is something already.
    """
    if files.exists(path):
        raise BadInput(f"{path}: is there already. Move it away, or name another file as --out.")
    files.write_text(path, json.dumps(outputs, ensure_ascii=False, indent=1) + "\n")
