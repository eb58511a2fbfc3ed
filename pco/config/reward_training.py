"""The config of a reward training, read from a YAML file as that of a run is."""

from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from data import files, packaged
from pco.config import file as config_file
from pco.config import formats, names
from pco.config.executor import Execution
from pco.config.section import Section
from pco.config.train import Training


class RewardTrain(Training):
    """Bradley-Terry on preference pairs: -log sigmoid of by how much the chosen text's reward exceeds the other's."""

    margin_scale: float = Field(0.0, ge=0, allow_inf_nan=False)
    """The rewards of a pair must differ by so many times the file's `margin`; 0 leaves margins out."""
    length_penalty: float = Field(0.0, ge=0, allow_inf_nan=False)
    """How much of what length alone tells is kept out of the reward: 0 nothing, 1 all that a fit on length finds."""


class RewardTraining(Section):
    """The training of one reward model."""

    kind: Literal["reward_training"] = "reward_training"
    """Tells this config from that of a run of rounds."""
    run: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Name of the training and of its folder: letters, digits, `.`, `_`, `-`, and `{date}` or `{time}` as of a run."""
    runs_dir: str = "runs"
    """Folder that holds all runs."""
    seed: int = Field(0, ge=0)
    """Every random choice follows from it."""
    stage_timeout_s: int = Field(24 * 3600, ge=1)
    """A stage process that runs longer is ended, in seconds."""
    stall_timeout_s: int = Field(1800, ge=1)
    """A stage process that says nothing for so long, in seconds, is ended; its log then tells where it hung."""
    executor: Execution = Execution()
    """Which processes make the shards of the test on held-out pairs."""
    model: str
    """What the reward model begins as: the folder or hub id of a language model or encoder, whose body gets a fresh
    head, or of a reward model, which keeps its own."""
    revision: str | None = None
    """Commit, tag or branch of a hub model."""
    preferences: str
    """JSONL or Parquet with `prompt`, `chosen`, `rejected` a row and, if you like, a `margin`."""
    heldout: str | None = None
    """Such a file that only the test sees; without it a share of the prompts is held out."""
    heldout_share: float = Field(0.1, gt=0, lt=1)
    """Share of the prompts that is held out, decided by the prompt alone as `pco data import` does; not used where
    `heldout` is given."""
    train: RewardTrain = RewardTrain()

    @property
    def folder(self) -> Path:
        """Where everything of this training lies."""
        return Path(self.runs_dir) / self.run

    @property
    def models(self) -> list[str]:
        """The folders and hub ids of all models that it needs."""
        return [self.model]

    @property
    def files(self) -> dict[str, Path]:
        """The user's files by their settings."""
        named = {"preferences": self.preferences, "heldout": self.heldout}
        return {name: Path(path) for name, path in named.items() if path is not None}

    @model_validator(mode="after")
    def _held_out_is_another_file(self) -> Self:
        if self.heldout is not None and self.heldout == self.preferences:
            raise ValueError("`heldout` names the training file; leave it out to hold out a share of the prompts")
        return self


def load(path: Path, overrides: list[str] | None = None, *, due: datetime | None = None) -> RewardTraining:
    """Read a YAML config, apply `a.b=value` overrides, validate, make its paths absolute, and decide its number format.

    `due` is the moment that the name may hold; now if none.

    Raises BadInput naming the file, the key, what was expected and, for an unknown key, the nearest known one.
    """
    raw = names.named(config_file.read(RewardTraining, path, overrides or []), due)
    config = _absolute(config_file.validated(RewardTraining, raw, source=str(path)))
    return formats.decided(config, config_file.of_run(config.folder))


def _absolute(config: RewardTraining) -> RewardTraining:
    """Stage processes and Prefect workers have other working directories, so no path may stay relative."""
    paths = {"runs_dir": Path(config.runs_dir), **config.files}
    if files.exists(Path(config.model).expanduser()):  # else a hub id
        paths["model"] = Path(config.model)
    return config.model_copy(update={name: str(packaged.absolute(path)) for name, path in paths.items()})


def of_split(config: RewardTraining) -> dict[str, Any]:
    """The settings that decide which pairs are trained on, and which are held out."""
    return {
        "model": config.model,
        "revision": config.revision,
        "heldout_share": None if config.heldout is not None else config.heldout_share,
        "max_pair_tokens": config.train.max_pair_tokens,
    }
