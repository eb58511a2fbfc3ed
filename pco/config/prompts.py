"""Where the data of a run come from: files, data sets where they are, and mixtures of several."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from data import columns, detecting, files, labels, packaged, sources
from data.conversations import Turns
from data.detecting import Kind
from data.errors import BadInput
from data.importing import Request
from data.labels import Meaning
from data.ranking import Pairs
from pco.config.section import Section, added, settings_of


class DataSource(Section):
    """A data set where it is, of any shape that `pco data import` reads, and read the same way; docs/data.md."""

    dataset: str
    """A file, a folder of files or of `datasets.save_to_disk`, or a data set of the hub as `owner/name`."""
    name: str | None = None
    """Of a data set of the hub: its subset (config)."""
    split: str | None = None
    """Of a folder or a data set of the hub that has several."""
    revision: str | None = None
    """Commit, tag or branch of a data set of the hub; only a commit stands for the same rows forever."""
    map: dict[str, str] = {}
    """What a column is, as `--map` says it: `{question: prompt}`."""
    ignore: list[str] = []
    """Columns to leave out of account."""
    labels: dict[Meaning, str | list[str]] = {}
    """What the labels mean: `{first: 0, second: 1, tie: 2}` of preferences, `{good: [4, 5], bad: 1}` of feedback."""
    pairs: Pairs = "best_worst"
    """Of several answers with scores or ranks: the best and the worst, all, or those side by side."""
    turns: Turns = "messages"
    """Conversations: kept as messages, only those of one question, or written out as Human/Assistant transcripts."""
    limit: int | None = Field(None, ge=1)
    """Read only the first so many rows."""
    weight: float | None = Field(None, gt=0, allow_inf_nan=False)
    """In a list: its share of the mixture, relative to the weights of the others. Without weights, all of all."""

    @field_validator("labels", mode="before")
    @classmethod
    def _values_are_texts(cls, meanings: object) -> object:
        if not isinstance(meanings, dict):
            return meanings
        return {
            meaning: list(map(_text, value)) if isinstance(value, list) else _text(value)
            for meaning, value in meanings.items()
        }

    @model_validator(mode="after")
    def _can_be_read(self) -> Self:
        try:
            columns.read_map([f"{column}={name}" for column, name in self.map.items()], detecting.known_names())
            _coding(self.labels)
        except BadInput as fault:
            raise ValueError(str(fault)) from None
        return self

    @property
    def is_local(self) -> bool:
        """Whether it lies on this machine, once its path is absolute."""
        return Path(self.dataset).is_absolute()

    @property
    def settings(self) -> dict[str, Any]:
        """What decides which rows it gives. The path of a local one does not, its content does."""
        settings = settings_of(self)
        return {key: value for key, value in settings.items() if key != "dataset"} if self.is_local else settings

    def request(self, kind: Kind) -> Request:
        """How it is read."""
        return Request(
            self.dataset,
            kind,
            names=self.map,
            ignored=tuple(self.ignore),
            coding=_coding(self.labels),
            pairs=self.pairs,
            split=self.split,
            subset=self.name,
            revision=self.revision,
            limit=self.limit,
            turns=self.turns,
        )

    def absolute(self) -> Self:
        """The same with the path of a local one absolute; the name of a data set of the hub stays one."""
        path = self.dataset
        if path.startswith(packaged.PREFIX) or files.exists(Path(path).expanduser()) or sources.looks_like_file(path):
            return self.model_copy(update={"dataset": str(packaged.absolute(path))})
        return self


def _text(value: object) -> object:
    return labels.value_text(value) if isinstance(value, bool | int | float) else value


def _coding(meanings: Mapping[Meaning, str | list[str]]) -> dict[str, Meaning]:
    values = {meaning: [value] if isinstance(value, str) else value for meaning, value in meanings.items()}
    return labels.coding([(meaning, value) for meaning, several in values.items() for value in several])


def _form(value: object) -> str:
    if isinstance(value, list):
        return "mixture"
    return "source" if isinstance(value, dict | DataSource) else "path"


def _named(value: object) -> object:
    return {"dataset": value} if isinstance(value, str) else value


Mixture = Annotated[list[Annotated[DataSource, BeforeValidator(_named)]], Field(min_length=1)]
# A choice by form, so that a fault is told of the form that was meant.
Source = Annotated[Annotated[str, Tag("path")] | Annotated[DataSource, Tag("source")], Discriminator(_form)]
Sources = Annotated[
    Annotated[str, Tag("path")] | Annotated[DataSource, Tag("source")] | Annotated[Mixture, Tag("mixture")],
    Discriminator(_form),
]


# What a run learns from and decides by, which its first stage freezes.
FILES = ("train", "heldout", "heldout_text", "preferences", "feedback")


class Prompts(Section):
    """What a run learns from and is measured on.

    A path names a JSONL or Parquet file with a `prompt` in each row and, if you like, an `id` and a `reference` (right
    answer). A prompt is a text or a list of messages; docs/conversations.md. `package:quickstart/train_prompts.jsonl`
    names a file that comes with pco.

    `{dataset: ..., ...}` in place of a path names data where they are and as they are; a list of such, a mixture.
    """

    train: Sources
    """Prompts that candidates are generated for in every round."""
    heldout: Source
    """Prompts that only the evaluation sees."""
    heldout_text: str
    """Human prose (`text` on each line) on which the policy's perplexity is watched."""
    test: Source | None = added(None)
    """Prompts that decide nothing: when the run has ended, the starting and the best policy answer them once."""
    test_share: float | None = added(None, gt=0, lt=1, allow_inf_nan=False)
    """In place of `test`: the share of the held-out prompts that is set aside for it, by a hash of each prompt."""
    preferences: Sources | None = None
    """Preference pairs to begin with: `prompt`, `chosen`, `rejected` a row. `replay` mixes them in, as of a round 0."""
    feedback: Source | None = None
    """Unpaired feedback to train on beside the pairs: `prompt`, `completion`, `good` (true or false) a line."""
    train_limit: int | None = Field(None, ge=1)
    """Use only the first so many training prompts."""
    heldout_limit: int | None = Field(None, ge=1)
    """Use only the first so many held-out prompts and texts."""
    exclude: list[Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]] = added([])
    """Ids of prompts and texts that are left out wherever they stand, after the limits, with all pairs and feedback on
    them; `pco drop` writes them here."""

    @model_validator(mode="after")
    def _one_test_set(self) -> Self:
        if self.test is not None and self.test_share is not None:
            raise ValueError("test and test_share: each says what the test prompts are; leave one of them out")
        return self

    @property
    def has_test(self) -> bool:
        """Whether there are prompts that decide nothing."""
        return self.test is not None or self.test_share is not None

    @property
    def of_test(self) -> Source | None:
        """Where the test prompts come from."""
        return self.test if self.test_share is None else self.heldout

    @model_validator(mode="after")
    def _weights_are_of_a_mixture(self) -> Self:
        for name in (*FILES, "test"):
            value = getattr(self, name)
            if isinstance(value, DataSource) and value.weight is not None:
                raise ValueError(f"{name}.weight: means something in a list of several sources; leave it out")
            weighted = [source.weight is not None for source in value] if isinstance(value, list) else []
            if any(weighted) and not all(weighted):
                raise ValueError(f"{name}: some sources have a weight, others none. Give one to each, or to none")
        return self

    def absolute(self) -> Self:
        """The same with absolute paths."""
        return self.model_copy(update={name: _absolute(getattr(self, name)) for name in (*FILES, "test")})

    def named(self) -> dict[str, dict[str, DataSource]]:
        """The sources of each setting that is no path, by their places in the config, such as `train.0`."""
        named = {name: sources_of(name, getattr(self, name)) for name in FILES}
        return {name: sources for name, sources in named.items() if sources}


def sources_of(name: str, value: str | DataSource | list[DataSource] | None) -> dict[str, DataSource]:
    """The sources in the value of a setting by their places in the config, such as `train.0`; none in a path."""
    match value:
        case DataSource():
            return {name: value}
        case list():
            return {f"{name}.{i}": source for i, source in enumerate(value)}
    return {}


def _absolute(value: str | DataSource | list[DataSource] | None) -> str | DataSource | list[DataSource] | None:
    match value:
        case None:
            return None
        case str():
            return str(packaged.absolute(value))
        case DataSource():
            return value.absolute()
    return [source.absolute() for source in value]


def told(value: str | DataSource | list[DataSource]) -> str:
    """What messages call it: a file by its path, a source by its data set and split."""
    match value:
        case str():
            return value
        case DataSource():
            return f"{value.dataset} ({value.split})" if value.split else value.dataset
    return ", ".join(map(told, value))
