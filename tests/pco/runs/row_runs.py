"""A run on disk whose tables hold rows that follow from one another, without a model."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data import files, schemas, store
from pco.config.run import RunConfig
from pco.doctor import reading
from pco.evaluation import metrics
from pco.evaluation.decision import Decision
from pco.pairing import replay
from pco.rounds import walk
from pco.runs.folder import opened
from pco.specs import StageName
from pco.stage import Stage
from tests import builders

Row = dict[str, Any]


class _Enough(Exception):
    pass


def play(config: RunConfig, until: tuple[int, StageName] | None = None) -> list[Stage]:
    """Make all stages before `until` that are not finished yet; returns those that were made now."""
    made: list[Stage] = []

    def do(stage: Stage) -> store.Manifest:
        if (stage.round, stage.name) == until:
            raise _Enough
        if (done := stage.finished()) is not None:
            return done
        made.append(stage)
        return _make(stage)

    with opened(config), contextlib.suppress(_Enough):
        walk(config, do)
    return made


def run_of(
    folder: Path, model: Path | str = "some/model", *, train: int = 3, preferences: int = 0, **settings: Any
) -> RunConfig:
    """A config with some prompts of each kind, and seed preferences that rounds draw from, if asked for."""
    builders.write_prompts(folder, [f"train {i}" for i in range(train)], [f"held {i}" for i in range(2)], ["prose"])
    if preferences:
        rows = [{"prompt": f"seed {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(preferences)]
        path = builders.write_jsonl(folder / "preferences.jsonl", rows)
        settings = {"prompts__preferences": str(path), "replay__rounds": 1, "replay__share": 0.5, **settings}
    return builders.config(folder, model, **settings)


def tokens(text: str) -> list[int]:
    """A token a character."""
    return [*map(ord, text)]


def _make(stage: Stage) -> store.Manifest:
    make: dict[str, Callable[[Stage], dict[str, list[Row]]]] = {
        "prepare": _prepare,
        "prepare_test": _prepare_test,
        "generate": lambda stage: {"candidates": _candidates(stage, "train")},
        "score": _score,
        "pair": _pair,
        "train": lambda _: {"train_log": []},
        "decide": lambda _: {"decisions": []},
        "evaluate": lambda stage: _evaluate(stage, "heldout"),
        "test_start": lambda stage: _evaluate(stage, "test"),
        "test": lambda stage: _evaluate(stage, "test"),
    }
    tables = make[stage.name](stage) if stage.name in make else {}
    for table, rows in tables.items():
        store.write_part(stage.folder, table, 0, schemas.build(table, rows), stage.fingerprint)
    if stage.name == "pair":
        replay.write(stage, fresh=len(tables["pairs"]))
    return stage.finish(unit="rows", rows_in=0, rows_out=0, dropped={}, started=0.0, outputs=_outputs(stage))


def _outputs(stage: Stage) -> dict[str, str]:
    match stage.name:
        case "prepare":
            model = Path(stage.config.policy.model)
            digest = files.folder_digest(model) if model.is_dir() else "the starting policy"
            return {"policy": digest, "policy_folder": str(model)}
        case "train":
            files.write_text(stage.folder.with_name("policy") / "model.safetensors", stage.fingerprint)
            return {"policy": files.folder_digest(stage.folder.with_name("policy"))}
        case "decide":
            return Decision(True, "promoted").outputs
    return {}


def _prepare(stage: Stage) -> dict[str, list[Row]]:
    from pco.doctor.inputs import Inputs

    inputs = Inputs(stage.config)
    splits = {"train": inputs.train, "heldout": inputs.heldout, "text": inputs.heldout_text}
    tables = {"prompts": [{"split": split, **row} for split, rows in splits.items() for row in rows]}
    if inputs.preferences:
        tables["preferences"] = [_preference(i, row) for i, row in enumerate(reading.preferences(stage.config).rows)]
        kept = {row["prompt_id"] for row in inputs.preferences}
        tables["preferences"] = [row for row in tables["preferences"] if row["prompt_id"] in kept]
    return tables


def _preference(i: int, row: Any) -> Row:
    return {
        **{name: row[name] for name in ("prompt_id", "prompt", "chosen", "rejected", "messages")},
        "source_prompt": row["prompt"],
        "prompt_token_ids": tokens(row["prompt"]),
        "chosen_token_ids": tokens(row["chosen"]),
        "rejected_token_ids": tokens(row["rejected"]),
        "chosen_sample": 2 * i,
        "rejected_sample": 2 * i + 1,
        "chosen_reward": None,
        "rejected_reward": None,
        "policy": "user",
    }


def _prepare_test(stage: Stage) -> dict[str, list[Row]]:
    from pco.doctor.inputs import Inputs

    return {"prompts": [{"split": "test", **row} for row in Inputs(stage.config).test]}


def _read(stage: Stage, name: str, table: str) -> list[Row]:
    return store.read_table(stage.inputs[name].folder, table).to_pylist()


def _candidates(stage: Stage, split: str) -> list[Row]:
    policy = stage.inputs["policy"].fingerprint
    rows = []
    for prompt in _read(stage, "prompts", "prompts"):
        for sample in range(2):
            if prompt["split"] == split:
                row = builders.candidate_row(prompt["prompt"], sample, tokens(f"answer {sample} of {stage.round}"))
                rows.append({**row, "seed": 10 * stage.round + sample, "policy": policy})
    return rows


def _score(stage: Stage) -> dict[str, list[Row]]:
    rows = _read(stage, "candidates", "candidates")
    names = ("prompt_id", "sample")
    scores = [{**{name: row[name] for name in names}, "reward": -float(row["sample"])} for row in rows]
    return {"scores": [{**row, "reward_model": "m", "members": None} for row in scores]}


def _pair(stage: Stage) -> dict[str, list[Row]]:
    rows = _read(stage, "candidates", "candidates")
    pairs = []
    for chosen, rejected in zip(rows[::2], rows[1::2], strict=True):
        both = {"chosen": chosen, "rejected": rejected}
        sides = {}
        for side, row in both.items():
            sides |= {side: row["completion"], f"{side}_token_ids": row["token_ids"]}
            sides |= {f"{side}_sample": row["sample"], f"{side}_reward": -float(row["sample"])}
        shared = ("prompt_id", "prompt", "prompt_token_ids", "policy")
        pairs.append({**{name: chosen[name] for name in shared}, **sides})
    return {"pairs": pairs}


def _evaluate(stage: Stage, split: str) -> dict[str, list[Row]]:
    candidates = _candidates(stage, split)
    candidates = [{**row, "mode": "sampled" if row["sample"] else "greedy", "sample": 0} for row in candidates]
    values = metrics.completion_rows(candidates, [0.25] * len(candidates)) + metrics.text_rows(["text"], [(-9.0, 9)])
    policy = stage.inputs["policy"].fingerprint
    return {"candidates": candidates, "evaluations": [{**row, "policy": policy} for row in values]}
