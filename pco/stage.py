"""A stage: one step of a round with everything that determines its result, and so its fingerprint."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal

from typing_extensions import TypeVar

from data import store
from data.errors import BadInput, RunConflict
from pco.config import reward as reward_config
from pco.config import reward_training
from pco.config.reward_training import RewardTraining
from pco.config.run import RunConfig
from pco.config.train import deciding

StageName = Literal["prepare", "generate", "score", "pair", "refer", "train", "evaluate", "decide"]
RewardStageName = Literal["split", "train_reward", "test_reward"]
Config = TypeVar("Config", bound=RunConfig | RewardTraining, default=RunConfig)

# Set by the launcher for the stage process: when, and by which process, it was started.
LAUNCHED = "PCO_LAUNCHED_AT"
PARENT = "PCO_PARENT"

START_STAGES: tuple[StageName, ...] = ("prepare", "evaluate")
ROUND_STAGES: tuple[StageName, ...] = ("generate", "score", "pair", "train", "evaluate", "decide")

# Raise a stage's version when its code makes other results from the same settings and inputs.
_VERSIONS: dict[StageName | RewardStageName, int] = {
    "prepare": 1,
    "generate": 1,
    "score": 1,
    "pair": 1,
    "refer": 1,
    "train": 1,
    "evaluate": 2,
    "decide": 1,
    "split": 1,
    "train_reward": 1,
    "test_reward": 1,
}

# The tables' nouns name the folders.
_FOLDERS: dict[StageName | RewardStageName, str] = {
    "prepare": "prompts",
    "generate": "candidates",
    "score": "scores",
    "pair": "pairs",
    "refer": "reference",
    "train": "training",
    "evaluate": "evaluation",
    "decide": "decision",
    "split": "pairs",
    "train_reward": "training",
    "test_reward": "test",
}


@dataclass(frozen=True)
class Artifact:
    """What one stage hands to another: a stage's folder or a model's folder, and the hash that stands for it."""

    folder: Path
    fingerprint: str


@dataclass(frozen=True)
class Stage(Generic[Config]):
    """One stage of one round, or of a reward training. Round 0 holds the prompts and the start's evaluation."""

    name: StageName | RewardStageName
    round: int
    config: Config
    inputs: Mapping[str, Artifact]

    @property
    def folder(self) -> Path:
        """Where its parts and manifest lie."""
        return round_folder(self.config, self.round) / _FOLDERS[self.name]

    @property
    def title(self) -> str:
        """For people: which round, which stage."""
        match self.config:
            case RewardTraining():
                return f"reward · {self.name.removesuffix('_reward')}"
            case RunConfig(rounds=rounds):
                return f"round {self.round}/{rounds} · {self.name}" if self.round else f"start · {self.name}"

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that decide the result, and no others: memory, time limits and paths do not."""
        match self.config:
            case RewardTraining():
                return reward_training.settings(self.name, self.config)
            case RunConfig():
                return _settings(self.name, self.config)

    @property
    def module(self) -> str:
        """The module that runs it."""
        package = "pco.reward_training" if isinstance(self.config, RewardTraining) else "pco.stages"
        return f"{package}.{self.name}"

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints mean equal results: a finished stage with this one is never run again."""
        return store.digest(
            {
                "stage": self.name,
                "version": _VERSIONS[self.name],
                "round": self.round,
                "settings": self.settings,
                "inputs": {name: artifact.fingerprint for name, artifact in self.inputs.items()},
            }
        )

    def made(self, manifest: store.Manifest) -> Artifact:
        """What this stage made, as an input of a later one."""
        return Artifact(self.folder, manifest.fingerprint)

    def finished(self) -> store.Manifest | None:
        """The manifest if this stage is done, None if it is yet to be done.

        Raises RunConflict when its folder holds finished work that this stage would not make.
        """
        manifest = store.read_manifest(self.folder)
        if manifest is not None and (changes := self.changes(manifest)):
            raise RunConflict(
                f"{self.folder}: holds a finished `{self.name}` that is stale: {'; '.join(changes)}. Finished work is "
                f"never overwritten. Restore what changed; {self._ways_on}"
            )
        return manifest

    @property
    def _ways_on(self) -> str:
        run = self.config.run
        if isinstance(self.config, RewardTraining):
            return "or train under another name (`--set run=...`)."
        return (
            f"or keep both: `pco fork {run} NEW` shares all that is still valid; or set it and all after it aside and "
            f"make them anew: `pco resume {run} --from {self.name} --round {self.round}`."
        )

    def changes(self, manifest: store.Manifest) -> list[str]:
        """What makes finished work differ from what this stage would make; nothing when it is this stage's.

        What a fork took over from another run is taken as it is.
        """
        if manifest.fingerprint == self.fingerprint or store.origin(self.folder) is not None:
            return []
        before, now = flat(manifest.settings), flat(self.settings)
        told = [
            f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
            for key in sorted(before | now)
            if before.get(key) != now.get(key)
        ]
        inputs = {name: artifact.fingerprint for name, artifact in self.inputs.items()}
        named = sorted(name for name in manifest.inputs | inputs if manifest.inputs.get(name) != inputs.get(name))
        told += [f"its input `{name}` changed ({self.inputs[name].folder})" for name in named if name in inputs]
        return told or ["it was made by another version of this stage's code"]

    def finish(self, **account: Any) -> store.Manifest:
        """Write the manifest; `account` holds the counts and times of `store.finish`."""
        return store.finish(
            self.folder,
            stage=self.name,
            fingerprint=self.fingerprint,
            inputs={name: artifact.fingerprint for name, artifact in self.inputs.items()},
            settings=self.settings,
            **account,
        )

    @staticmethod
    def launched() -> float:
        """When the parent started this process, seconds since the epoch: imports are part of a stage's time."""
        return float(os.environ.get(LAUNCHED, time.time()))

    def to_json(self) -> str:
        """The whole stage, to be handed to its process."""
        inputs = {name: [str(item.folder), item.fingerprint] for name, item in self.inputs.items()}
        return json.dumps(
            {"name": self.name, "round": self.round, "config": self.config.model_dump(mode="json"), "inputs": inputs},
            indent=1,
        )

    @staticmethod
    def from_json(text: str) -> "Stage[Any]":
        """The inverse of `to_json`."""
        raw = json.loads(text)
        inputs = {name: Artifact(Path(folder), fingerprint) for name, (folder, fingerprint) in raw["inputs"].items()}
        kind = RewardTraining if raw["config"].get("kind") == "reward_training" else RunConfig
        return Stage(raw["name"], raw["round"], kind.model_validate(raw["config"]), inputs)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `section.key: value`."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def stages_of(config: RunConfig, number: int) -> tuple[StageName, ...]:
    """The stages of a round in the order in which they run; only losses with a reference have `refer`."""
    if number == 0:
        return START_STAGES
    train = ROUND_STAGES.index("train")
    refer: tuple[StageName, ...] = ("refer",) if config.train.loss.reference_policy else ()
    return (*ROUND_STAGES[:train], *refer, *ROUND_STAGES[train:])


def round_folder(config: RunConfig | RewardTraining, number: int) -> Path:
    """The folder of a round; a reward training has none, and is its own."""
    return config.folder if isinstance(config, RewardTraining) else config.folder / f"round-{number:02d}"


def file_fingerprint(path: Path, recorded: str | None, *, key: str) -> str:
    """Hash of a user's file, or what was recorded of it if it is gone; `key` is the setting that names it.

    Raises BadInput when it cannot be read.
    """
    try:
        return store.file_digest(path)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and recorded is not None:
            return recorded
        raise BadInput(
            f"{path}: could not be read ({error.strerror}). Name a JSONL or Parquet file as `{key}`."
        ) from error


def _without(settings: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


def _settings(name: str, config: RunConfig) -> dict[str, Any]:
    dump = config.model_dump(mode="json")
    policy, engine = dump["policy"], {key: dump["engine"][key] for key in ("dtype", "max_model_len", "tensor_parallel")}
    rendering = {key: policy[key] for key in ("prompt_format", "system")}
    match name:
        case "prepare":
            limits = {key: dump["prompts"][key] for key in ("train_limit", "heldout_limit")}
            # How the user's completions are rendered decides their tokens; prompts are rendered where they are used.
            given = config.prompts.preferences or config.prompts.feedback
            rendered = {"rendering": rendering} if given else {}
            return {"model": policy["model"], "revision": policy["revision"], **limits, **rendered}
        case "generate":
            return {"rendering": rendering, "generate": dump["generate"], "engine": engine, "seed": config.seed}
        case "score":
            return {"reward": reward_config.settings(config.reward)}
        case "pair":
            # What decides nothing stays out: a run that was made before the setting was there is not made again.
            replay, judging = _without(dump["replay"], ("rescore",)), {}
            if config.replay.rescore:
                replay, judging = dump["replay"], {"reward": reward_config.settings(config.reward)}
            return {"pair": dump["pair"], "replay": replay, "seed": config.seed, **judging}
        case "refer":
            return {"precision": config.train.precision}
        case "train":
            return {"train": deciding(config.train), "seed": config.seed}
        case "evaluate":
            second = config.evaluate.second_reward
            measuring = _without(dump["evaluate"], () if config.evaluate.tasks else ("tasks", "task_limit"))
            return {
                "rendering": rendering,
                "generate": _without(dump["generate"], ("n",)),
                "engine": engine,
                "reward": reward_config.settings(config.reward),
                "evaluate": {**measuring, "second_reward": second and reward_config.settings(second)},
                "seed": config.seed,
            }
        case "decide":
            return {"gate": {key: dump["gate"][key] for key in ("require", "guards")}}
        case _:
            raise AssertionError(f"{name}: no stage of a round")
