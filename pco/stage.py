"""A stage: one step of a round with everything that determines its result, and so its fingerprint."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

from typing_extensions import TypeVar

from data import files, store
from data.errors import BadInput, RunConflict
from pco.config.prompts import DataSource
from pco.config.reward_training import RewardTraining
from pco.config.run import RunConfig
from pco.config.section import Section
from pco.config.trace import Trace
from pco.sharding import Done, OnDone, Shard, ShardedTable, Sharding, in_order
from pco.specs import SPECS, AnyStageName, StageSpec

Config = TypeVar("Config", bound=RunConfig | RewardTraining | Trace, default=RunConfig)

# What a config says of itself; that of a run of rounds says nothing.
_KINDS: dict[str | None, type[Section]] = {"reward_training": RewardTraining, "trace": Trace}

# Set by the launcher for the stage process: when, and by which process, it was started.
LAUNCHED = "PCO_LAUNCHED_AT"
PARENT = "PCO_PARENT"


@dataclass(frozen=True)
class Artifact:
    """What one stage hands to another: a stage's folder or a model's folder, and the hash that stands for it."""

    folder: Path
    fingerprint: str


@dataclass(frozen=True)
class Stage(Generic[Config]):
    """One stage of one round, or of a reward training. Round 0 holds the prompts and the start's evaluation."""

    name: AnyStageName
    round: int
    config: Config
    inputs: Mapping[str, Artifact] = field(default_factory=dict)
    sharding: Sharding = field(default=in_order, compare=False, repr=False)
    """How its process makes shards: itself, or by workers."""

    @property
    def spec(self) -> StageSpec:
        """What is known of its kind."""
        return SPECS[self.name]

    @property
    def folder(self) -> Path:
        """Where its parts and manifest lie."""
        return self._round_folder / self.spec.folder

    @property
    def model_folder(self) -> Path:
        """Where the model lies that it saves, or makes of an adapter."""
        return self._round_folder / (self.spec.model or self.spec.merged)

    @property
    def stage_file(self) -> Path:
        """What its process was started with, as JSON."""
        return self._log("json")

    @property
    def log_file(self) -> Path:
        """What its process printed."""
        return self._log("log")

    @property
    def error_file(self) -> Path:
        """Why its last attempt failed, if it did."""
        return self._log("error")

    def _log(self, suffix: str) -> Path:
        return self._round_folder / "logs" / f"{self.name}.{suffix}"

    @property
    def _round_folder(self) -> Path:
        return round_folder(self.config, self.round)

    @property
    def title(self) -> str:
        """For people: which round, which stage."""
        match self.config:
            case RewardTraining():
                return f"reward · {self.name.removesuffix('_reward')}"
            case Trace():
                return f"trace · {self.config.prompt_id}"
            case RunConfig(rounds=rounds):
                return f"round {self.round}/{rounds} · {self.name}" if self.round else f"start · {self.name}"

    @property
    def module(self) -> str:
        """The module whose `run` does its work."""
        return f"{self.spec.package}.{self.name}"

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that decide the result, and no others."""
        return self.spec.settings(self.config)

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints mean equal results: a finished stage with this one is never run again."""
        return self._fingerprint(self.spec.version)

    def _fingerprint(self, version: int) -> str:
        return files.digest(
            {
                "stage": self.spec.recorded_as or self.name,
                "version": version,
                "round": self.round,
                "settings": self.settings,
                "inputs": {name: artifact.fingerprint for name, artifact in self.inputs.items()},
            }
        )

    def result(self, manifest: store.Manifest) -> Artifact:
        """What this stage made, as an input of a later one."""
        return Artifact(self.folder, manifest.fingerprint)

    def saved_model(self, manifest: store.Manifest) -> Artifact:
        """The model that this stage saved, as an input of a later one."""
        return Artifact(self.model_folder, manifest.outputs[self.spec.model])

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

    def starting_policy(self, manifest: store.Manifest) -> Artifact:
        """The policy that a run begins with, as `prepare` found it, or merged it into its round's folder."""
        folder = self._round_folder / manifest.outputs["policy_folder"]  # an absolute path stays what it is
        return Artifact(folder, manifest.outputs["policy"])

    def own_model(self, manifest: store.Manifest) -> Artifact | None:
        """The model that it wrote into its round's folder, which may be removed since; None where it wrote none."""
        if self.spec.model:
            return self.saved_model(manifest)
        if self.spec.merged and manifest.outputs[f"{self.spec.merged}_folder"] == self.spec.merged:
            return Artifact(self.model_folder, manifest.outputs[self.spec.merged])
        return None

    @property
    def _ways_on(self) -> str:
        run = self.config.run
        if isinstance(self.config, Trace):
            return f"or delete {self.config.folder} and trace again."
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
        versions = (self.spec.version, *self.spec.valid_versions)
        if any(manifest.fingerprint == self._fingerprint(version) for version in versions):
            return []
        if store.origin(self.folder) is not None:
            return []
        before, now = flat(manifest.settings), flat(self.settings)
        changes = [
            f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
            for key in sorted(before | now)
            if before.get(key) != now.get(key)
        ]
        changes += [
            f"its input `{name}` changed ({self.inputs[name].folder})"
            for name in sorted(self.inputs)
            if manifest.inputs.get(name) != self.inputs[name].fingerprint
        ]
        return changes or ["it was made by another version of this stage's code"]

    def is_made(self, table: str, shard: int) -> bool:
        """Whether a shard of a table is on disk, whole and of this stage."""
        return store.has_part(self.folder, table, shard, self.fingerprint)

    def missing(self, table: ShardedTable) -> list[int]:
        """The shards of a table that are not on disk yet."""
        return [index for index in range(len(table.sizes)) if not self.is_made(table.name, index)]

    def commit(self, table: ShardedTable, index: int, shard: Shard) -> None:
        """Put a shard on disk, whole or not at all. To commit it twice is harmless."""
        store.write_part(
            self.folder,
            table.name,
            index,
            shard.content,
            self.fingerprint,
            of=len(table.sizes),
            dropped=shard.dropped,
            counts=shard.counts,
        )

    def shards(
        self,
        table: str,
        sizes: Sequence[int],
        make: Callable[[int, OnDone], Shard],
        *,
        unit: str = "",
        alone: bool = False,
    ) -> Iterator[Done]:
        """Make the shards of a table that are not on disk yet, each committed when it is made.

        Yields every shard once it is on disk: in order where this process makes them, else as workers finish them.
        Progress is reported in units of `sizes`. The arguments are those of `ShardedTable`.
        """
        return self.sharding(self, ShardedTable(table, sizes, make, unit, alone))

    def finish(self, **account: Any) -> store.Manifest:
        """Write the manifest; `account` holds the counts and times of `store.finish`."""
        return store.finish(
            self.folder,
            stage=self.spec.recorded_as or self.name,
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
        config = _KINDS.get(raw["config"].get("kind"), RunConfig).model_validate(raw["config"])
        return Stage(raw["name"], raw["round"], config, inputs)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `section.key: value`."""
    settings: dict[str, Any] = {}
    for key, value in tree.items():
        settings |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return settings


def round_folder(config: RunConfig | RewardTraining | Trace, number: int) -> Path:
    """The folder of a round; a reward training and a trace have none, and are their own."""
    return config.folder / f"round-{number:02d}" if isinstance(config, RunConfig) else config.folder


def source_fingerprint(source: DataSource, recorded: str | None, *, key: str) -> str:
    """Hash of a source's content, or what was recorded of it if it is gone; of a hub data set, of how it is named.

    Raises BadInput when it cannot be read.
    """
    path = Path(source.dataset)
    if not source.is_local:
        return files.digest(source.settings)
    if path.is_dir():
        return files.tree_digest(path)
    return file_fingerprint(path, recorded, key=key)


def file_fingerprint(path: Path, recorded: str | None, *, key: str) -> str:
    """Hash of a user's file, or what was recorded of it if it is gone; `key` is the setting that names it.

    Raises BadInput when it cannot be read.
    """
    try:
        return files.file_digest(path)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and recorded is not None:
            return recorded
        raise BadInput(
            f"{path}: could not be read ({error.strerror}). Name a JSONL or Parquet file as `{key}`."
        ) from error
