"""Reward trainings on preferences of the tiny model's kind."""

from pathlib import Path
from typing import Any

from pco.config.reward_training import RewardTraining
from tests import builders, tiny_model

PROMPTS = 12


def preferences(folder: Path, pairs_each: int = 2, **columns: Any) -> Path:
    """Varied text is preferred to a sentence said again and again."""
    rows = []
    for i in range(PROMPTS * pairs_each):
        prompt, *chosen = tiny_model.sentences(3, seed=i % PROMPTS)
        rejected = [prompt] * (1 + i % 3)
        row = {
            "prompt": f"{prompt} {i % PROMPTS}.",
            "chosen": " ".join(chosen),
            "rejected": f"{' '.join(rejected)} {i}",
        }
        rows.append({**row, **columns})
    return builders.write_jsonl(folder / "preferences.jsonl", rows)


def training_config(folder: Path, model: Path | str, **changes: Any) -> RewardTraining:
    """The smallest valid config over those preferences with some settings changed; those of `train` as `train__key`."""
    said = {name.removeprefix("train__"): value for name, value in changes.items() if name.startswith("train__")}
    train = {"precision": "bf16"} | said  # the same on every machine
    own = {name: value for name, value in changes.items() if not name.startswith("train__")}
    base = {"run": "reward", "runs_dir": str(folder / "runs"), "model": str(model), "heldout_share": 0.3}
    file = own.pop("preferences", None) or preferences(folder)
    return RewardTraining.model_validate({**base, "preferences": str(file), **own, "train": train})
