"""The inputs that a config names, each read when it is first used."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data import files, readers
from data.errors import BadInput
from data.importing import Outcome
from data.prompts import asked
from data.rows import UserFeedback, UserPreference
from pco.config.run import RunConfig
from pco.doctor import reading
from pco.doctor.reading import Read
from pco.models import adapters, hub
from pco.models.protocols import Tokenizer
from pco.models.rendering import load_tokenizer, render

_CONTEXT = 2048  # of a model that does not say


@dataclass(frozen=True)
class Inputs:
    """The inputs that a config names. Each is read when it is first used, and raises BadInput if it is wrong."""

    config: RunConfig

    @cached_property
    def train(self) -> list[readers.Row]:
        """The training prompts."""
        return self._some_kept("train", self._train.rows)

    @cached_property
    def heldout(self) -> list[readers.Row]:
        """The held-out prompts."""
        return self._some_kept("heldout", self._heldout.rows)

    @cached_property
    def _train(self) -> Read[readers.Row]:
        return reading.prompts(self.config, "train", limit=self.config.prompts.train_limit)

    @cached_property
    def _heldout(self) -> Read[readers.Row]:
        return reading.heldout(self.config)

    @cached_property
    def test(self) -> list[readers.Row]:
        """The test prompts, if there are any."""
        return self._some_kept("test", self._test.rows)

    @cached_property
    def _test(self) -> Read[readers.Row]:
        return reading.test(self.config)

    @property
    def test_sources(self) -> dict[str, Outcome]:
        """As `sources`, of the test prompts, which a stage of their own freezes."""
        return dict(self._test.sources)

    @cached_property
    def heldout_text(self) -> list[readers.Row]:
        """The human texts."""
        return self._some_kept("heldout_text", self._heldout_text)

    @cached_property
    def _heldout_text(self) -> list[readers.Row]:
        prompts = self.config.prompts
        return readers.read_jsonl(Path(prompts.heldout_text), key="text", limit=prompts.heldout_limit)

    @cached_property
    def preferences(self) -> list[UserPreference]:
        """The seed preferences."""
        return [row for _, row in self.numbered_preferences]

    @cached_property
    def numbered_preferences(self) -> list[tuple[int, UserPreference]]:
        """The seed preferences with their places among all in the source, which stay when others are excluded."""
        numbered = enumerate(self._preferences.rows)
        return [(i, row) for i, row in numbered if row["prompt_id"] not in self._excluded_ids]

    @cached_property
    def feedback(self) -> list[UserFeedback]:
        """The unpaired feedback."""
        return [row for row in self._feedback.rows if row["prompt_id"] not in self._excluded_ids]

    @cached_property
    def _excluded_ids(self) -> set[str]:
        return set(self.config.prompts.exclude)

    def _some_kept(self, name: str, rows: list[readers.Row]) -> list[readers.Row]:
        """The rows that are not excluded. Raises BadInput when there were some and none is left."""
        kept = [row for row in rows if row["prompt_id"] not in self._excluded_ids]
        if rows and not kept:
            raise BadInput(f"prompts.exclude: leaves nothing of prompts.{name}. Name other data, or exclude less.")
        return kept

    @property
    def excluded(self) -> int:
        """How many prompts, texts, preferences and pieces of feedback `prompts.exclude` leaves out."""
        read = (self._train.rows, self._heldout.rows, self._heldout_text, self._preferences.rows, self._feedback.rows)
        return sum(row["prompt_id"] in self._excluded_ids for rows in read for row in rows)

    @property
    def excluded_of_test(self) -> int:
        """How many test prompts it leaves out."""
        return sum(row["prompt_id"] in self._excluded_ids for row in self._test.rows)

    @cached_property
    def _preferences(self) -> Read[UserPreference]:
        return reading.preferences(self.config)

    @cached_property
    def _feedback(self) -> Read[UserFeedback]:
        return reading.feedback(self.config)

    @property
    def sources(self) -> dict[str, Outcome]:
        """By its place in the config, what became of the rows of each source that is no path."""
        return {
            **self._train.sources,
            **self._heldout.sources,
            **self._preferences.sources,
            **self._feedback.sources,
        }

    @property
    def nan_references(self) -> dict[str, int]:
        """How many right answers of each file of prompts are NaN, which is none; files without such are left out."""
        read = {"train": self._train, "heldout": self._heldout}
        return {name: source.references["NaN"] for name, source in read.items() if source.references.get("NaN")}

    def told(self) -> list[str]:
        """What became of the rows of each source, and which right answers are none, a line each."""
        lines = [reading.told_source(place, outcome) for place, outcome in self.sources.items()]
        return lines + [
            f"prompts.{name}: references of NaN, which is none: {count:,}"
            for name, count in self.nan_references.items()
        ]

    @cached_property
    def found(self) -> hub.Found:
        """The starting policy; an adapter is not merged yet."""
        policy = self.config.policy
        return hub.find(policy.model, policy.revision, task="CAUSAL_LM", key="policy.model")

    @property
    def model(self) -> Path:
        """The folder of the starting policy, or of the model that it is an adapter of."""
        return self.found.folder

    def merged_into(self, folder: Path) -> Path:
        """The folder of the starting policy as a whole model: an adapter is merged now, into `folder`."""
        found = self.found
        if found.adapter is None:
            return found.folder
        adapters.write(found.folder, found.adapter, found.tokenizer, folder)
        return folder

    @cached_property
    def shape(self) -> dict[str, Any]:
        """The settings of the language model in the model's config.json: `vocab_size`, `hidden_size` and so on."""
        return _model_shape(self.model)

    @cached_property
    def context(self) -> int:
        """Tokens that the model may read."""
        return _context(self.config, self.shape.get("max_position_embeddings"))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The policy's tokenizer."""
        tokenizer = load_tokenizer(self.found.tokenizer)
        if self.config.policy.prompt_format == "chat" and not tokenizer.chat_template:
            raise BadInput(f"{self.model}: its tokenizer has no chat template. Set policy.prompt_format: raw.")
        return tokenizer

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each training prompt, then of each held-out one, as the policy reads them."""
        return [length for length, _ in self._measured]

    @cached_property
    def highest_token(self) -> int:
        """The highest token id of all prompts."""
        return max(highest for _, highest in self._measured)

    @cached_property
    def _measured(self) -> list[tuple[int, int]]:
        rows = [*self.train, *self.heldout]
        tokens = (render(self.tokenizer, asked(row), self.config.policy).token_ids for row in rows)
        return [(len(ids), max(ids, default=0)) for ids in tokens]

    def counted(self) -> str:
        """The number of rows of each kind."""
        optional = {
            "test prompts": len(self.test),
            "seed preferences": len(self.preferences),
            "pieces of feedback": len(self.feedback),
        }
        more = "".join(f", {count} {what}" for what, count in optional.items() if count)
        return f"{len(self.train)} training prompts, {len(self.heldout)} held-out, {len(self.heldout_text)} texts{more}"

    def summary(self) -> str:
        """One line for people."""
        adapter = (
            "" if self.found.adapter is None else f" with adapter {self.found.adapter}, merged when the run begins"
        )
        longest = f"longest prompt {max(self.lengths)} of {self.context} tokens"
        return f"{self.counted()}; {longest}; model {self.model}{adapter}"


def existing_folder(inputs: Inputs) -> Path:
    """The folder of runs, or the nearest one above it that exists already."""
    runs_dir = Path(inputs.config.runs_dir)
    return next(path for path in (runs_dir, *runs_dir.parents) if files.exists(path))


def _model_shape(model: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((model / "config.json").read_text(encoding="utf-8"))
        text = {**config, **config.get("text_config", {})}
        return {**text, "vocab_size": int(text["vocab_size"])}
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{model / 'config.json'}: not a language model's config ({error!r}).") from error


def _context(config: RunConfig, own: int | None) -> int:
    requested = config.engine.max_model_len
    if requested and own and requested > own:
        raise BadInput(f"engine.max_model_len: {requested} is more than the model's own context of {own}. Lower it.")
    return requested or own or _CONTEXT
