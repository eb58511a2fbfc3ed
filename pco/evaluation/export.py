"""What other people's evaluators read."""

import json
from pathlib import Path

from data import files, store
from data.errors import BadInput
from pco.config.run import RunConfig
from pco.models.sampling import GREEDY
from pco.stage import Stage


def alpaca_eval(config: RunConfig, evaluation: Path, generator: str) -> list[dict[str, str]]:
    """The greedy completions of an evaluation as AlpacaEval's `model_outputs.json` has them (arXiv 2404.04475).

    `instruction` is the prompt as the user wrote it, `generator` the name of the policy.
    """
    prompts = store.read_table(Stage("prepare", 0, config, {}).folder, "prompts").to_pylist()
    written = {row["prompt_id"]: row["prompt"] for row in prompts if row["split"] == "heldout"}
    candidates = store.read_table(evaluation, "candidates").to_pylist()
    return [
        {"instruction": written[row["prompt_id"]], "output": row["completion"], "generator": generator}
        for row in candidates
        if row["mode"] == GREEDY
    ]


def write(path: Path, outputs: list[dict[str, str]]) -> None:
    """Write the JSON file that the public evaluator is given.

    Raises BadInput when there is something already.
    """
    if files.exists(path):
        raise BadInput(f"{path}: is there already. Move it away, or name another file as --out.")
    files.write_text(path, json.dumps(outputs, ensure_ascii=False, indent=1) + "\n")
