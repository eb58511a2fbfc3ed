"""Configs, stages and tables for the tests, each valid on its own, so that a test names only what it is about."""

import contextlib
import json
import random
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from data import files, schemas, store
from data.readers import prompt_id
from pco.config.run import RunConfig
from pco.evaluation import looks
from pco.rounds import State, inputs_of
from pco.specs import StageName
from pco.stage import Artifact, Stage

Row = dict[str, Any]

PRETEND = Artifact(Path("/nowhere"), "0123456789abcdef")  # an input that the code under test never opens


def raw_config(folder: Path, model: Path | str = "some/model") -> Row:
    """The smallest valid config, as YAML would give it."""
    prompts = {name: str(folder / f"{name}.jsonl") for name in ("train", "heldout", "heldout_text")}
    return {"run": "test", "runs_dir": str(folder / "runs"), "policy": {"model": str(model)}, "prompts": prompts}


def config(folder: Path, model: Path | str = "some/model", **settings: Any) -> RunConfig:
    """The smallest valid config with some settings changed, named as `section__key`.

    Its number formats are decided, and the same on every machine: those that runs had before there was a choice.
    """
    raw = RunConfig.model_validate(raw_config(folder, model)).model_dump()
    return changed(raw, **({"engine__dtype": "bfloat16", "train__precision": "bf16"} | settings))


def changed(raw: Row | RunConfig, **settings: Any) -> RunConfig:
    """The config with some settings changed, named as `section__key`."""
    raw = json.loads(json.dumps(raw if isinstance(raw, dict) else raw.model_dump()))
    for name, value in settings.items():
        *parents, last = name.split("__")
        section = raw
        for parent in parents:
            section = section[parent]
        section[last] = value
    return RunConfig.model_validate(raw)


def stage(name: StageName, config: RunConfig, inputs: dict[str, Artifact] | None = None, number: int = 1) -> Stage:
    """A stage of round 1, unless told otherwise."""
    return Stage(name, number, config, inputs or {})


def prepare_stage(config: RunConfig) -> Stage:
    """The first stage of a run, with the user's files as its inputs."""
    return Stage("prepare", 0, config, inputs_of("prepare", config, State()))


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    """A JSONL file of some rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_prompts(
    folder: Path, train: Sequence[str], heldout: Sequence[str], texts: Sequence[str] = ("Human prose.",)
) -> None:
    """The three files that `raw_config` names."""
    write_jsonl(folder / "train.jsonl", [{"prompt": text} for text in train])
    write_jsonl(folder / "heldout.jsonl", [{"prompt": text} for text in heldout])
    write_jsonl(folder / "heldout_text.jsonl", [{"text": text} for text in texts])


def finished(
    folder: Path, tables: dict[str, list[Row]], name: StageName = "score", fingerprint: str = "f" * 16
) -> Artifact:
    """A finished stage's folder with some tables, to be the input of another."""
    for table, rows in tables.items():
        store.write_part(folder, table, 0, schemas.build(table, rows), fingerprint)
    rows = sum(map(len, tables.values()))
    store.finish(
        folder,
        stage=name,
        fingerprint=fingerprint,
        unit="rows",
        rows_in=rows,
        rows_out=rows,
        dropped={},
        inputs={},
        settings={},
        started=0.0,
    )
    return Artifact(folder, fingerprint)


def result(stage: Stage) -> Artifact:
    """What a finished stage made, as an input of another."""
    return Artifact(stage.folder, stage.fingerprint)


def model(folder: Path) -> Artifact:
    """A model folder as a stage's input."""
    return Artifact(folder, files.folder_digest(folder))


def prompt_row(text: str, split: str = "train") -> Row:
    """A row of `prompts`."""
    return {
        "split": split,
        "prompt_id": prompt_id(text),
        "source_id": None,
        "prompt": text,
        "reference": None,
        "messages": None,
    }


def candidate_row(prompt: str = "p", sample: int = 0, tokens: Sequence[int] = (1, 2, 3), mode: str = "sampled") -> Row:
    """A row of `candidates`."""
    return {
        "prompt_id": prompt_id(prompt),
        "mode": mode,
        "sample": sample,
        "prompt": prompt,
        "prompt_token_ids": [7, 8],
        "completion": " ".join(map(str, tokens)),
        "token_ids": list(tokens),
        "logprob": -1.0,
        "finish_reason": "length",
        "seed": 0,
        "policy": "digest",
    }


def score_row(prompt: str, sample: int, reward: float) -> Row:
    """A row of `scores`."""
    return {
        "prompt_id": prompt_id(prompt),
        "sample": sample,
        "reward": reward,
        "reward_model": "digest",
        "members": None,
    }


def pair_rows(tokenizer: Any, count: int, seed: int = 0) -> list[Row]:
    """Rows of `pairs` over text of the tiny model's kind: varied text is chosen, a repeated sentence rejected."""
    from tests import tiny_model

    draw = random.Random(seed)
    rows = []
    for i in range(count):
        prompt, *chosen = tiny_model.sentences(3, seed=1000 * seed + i)
        rejected = [prompt] * draw.randint(1, 3)
        rows.append(_pair_row(tokenizer, f"{prompt} {i}.", " ".join(chosen[: draw.randint(1, 2)]), " ".join(rejected)))
    return rows


def _pair_row(tokenizer: Any, prompt: str, chosen: str, rejected: str) -> Row:
    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    return {
        "prompt_id": prompt_id(prompt),
        "prompt": prompt,
        "chosen": f" {chosen}",
        "rejected": f" {rejected}",
        "prompt_token_ids": tokenizer(prompt)["input_ids"],
        "chosen_token_ids": [*ids(f" {chosen}"), tokenizer.eos_token_id],
        "rejected_token_ids": ids(f" {rejected}"),
        "chosen_sample": 0,
        "rejected_sample": 1,
        "chosen_reward": 0.0,
        "rejected_reward": -0.5,
        "policy": "digest",
    }


def checkpoint(folder: Path, steps: int, fingerprint: str = "f", of: int = 9) -> Path:
    """A whole checkpoint of a training after some steps, with a file for its weights; returns its folder."""
    tag = folder / f"step-{steps:08d}"
    tag.mkdir(parents=True)
    (tag / "weights").write_text("weights")
    content = {"fingerprint": fingerprint, "of": of, "log": [{}] * steps, "files": {"weights": 7}}
    files.write_text(tag.with_suffix(".json"), json.dumps(content))
    return tag


def played(
    config: RunConfig,
    until: tuple[int, StageName] | None = None,
    *,
    refused: int | Collection[int] = (),
    again: bool = False,
) -> list[Stage]:
    """A run on disk whose stages before `until` are finished, each with an empty folder but for its manifest.

    The gate refuses round `refused`, or several. Returns the stages in the order in which they ran.
    """
    from pco.rounds import walk
    from pco.runs.folder import opened

    class Enough(Exception):
        pass

    def pretend(stage: Stage) -> store.Manifest:
        if (stage.round, stage.name) == until:
            raise Enough
        walked.append(stage)
        if (done := stage.finished()) is not None:
            return done
        return pretended(stage, refused=stage.round in refusals)

    walked: list[Stage] = []
    refusals = {refused} if isinstance(refused, int) else set(refused)
    with opened(config), contextlib.suppress(Enough):
        walk(config, pretend, again=again)
    return walked


def pretended(stage: Stage, *, refused: bool = False) -> store.Manifest:
    """A stage that is finished without having made any rows; a training leaves a policy of its own."""
    if stage.name == "train":
        policy = stage.folder.with_name("policy")
        policy.mkdir(parents=True)
        (policy / "model.safetensors").write_text(stage.fingerprint)
    if stage.name == "test":
        looks.record(stage)
    return stage.finish(
        unit="rows", rows_in=1, rows_out=1, dropped={}, started=0.0, outputs=_outputs(stage, refused=refused)
    )


def _outputs(stage: Stage, refused: bool) -> dict[str, str]:
    promoted = "no" if refused else "yes"
    match stage.name:
        case "prepare" if stage.config.begun and stage.config.begun.policy:
            return {"policy": stage.config.begun.policy, "policy_folder": stage.config.policy.model}
        case "prepare":
            return {"policy": "the starting policy", "policy_folder": "/nowhere"}
        case "train":
            return {"policy": files.folder_digest(stage.folder.with_name("policy"))}
        case "decide":
            return {"promoted": promoted, "reason": f"round {stage.round} {promoted}"}
    return {}
