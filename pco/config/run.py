"""The one config of a run. Every field's description is its documentation; unknown keys are refused by name."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from data import files, windows
from pco.config import file as config_file
from pco.config import formats, names
from pco.config.executor import Execution
from pco.config.gate import Gate
from pco.config.metrics import TASK
from pco.config.prompts import Prompts
from pco.config.reward import (
    RepetitionReward,
    RewardConfig,
    absolute,
    compares_with_reference,
    models,
    parts,
    settings,
)
from pco.config.section import Section, added, iso_date
from pco.config.series import Begun, Series
from pco.config.trackers import Tracker
from pco.config.train import Train, absolute_loss


class Policy(Section):
    """The model to improve."""

    model: str
    """A local Hugging Face folder or a hub id, e.g. `HuggingFaceTB/SmolLM2-135M-Instruct`; also of a LoRA adapter,
    which is merged into its base when the run begins."""
    revision: str | None = None
    """Commit, tag or branch of a hub model."""
    prompt_format: Literal["raw", "chat"] = "chat"
    """`raw` lets the model continue the prompt; `chat` renders it as a user message, or the messages that it
    is, with the model's chat template."""
    system: str | None = None
    """System message put before every prompt that brings none (`chat` only)."""
    system_role: Literal["own", "merge"] = added("own")
    """`merge` puts system messages at the beginning of the first user turn, for chat templates that refuse the role."""
    template_date: str | None = added(None)
    """The date that the chat template is told, for one that writes today's, such as `2026-01-31`; by default that of
    the run's start, in all its rounds."""

    _date_is_one = field_validator("template_date", mode="before")(iso_date)

    @model_validator(mode="after")
    def _system_needs_chat(self) -> "Policy":
        if self.system is not None and self.prompt_format == "raw":
            raise ValueError("`system` needs prompt_format: chat; raw prompts have no place for it")
        return self


class Generate(Section):
    """Sampling of candidate completions with vLLM."""

    n: int = Field(4, ge=2)
    """Completions per prompt; pairs are made among them, so at least 2."""
    temperature: float = Field(0.7, gt=0)
    """Sampling temperature."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling: the share of probability mass kept."""
    top_k: int = Field(0, ge=0)
    """Sample among so many most likely tokens; 0 for all."""
    min_tokens: int = Field(0, ge=0)
    """No end of text before so many tokens."""
    max_tokens: int = Field(256, ge=1)
    """Completion length limit in tokens."""
    stop: list[str] = []
    """Strings that end a completion; they are not part of it."""
    shard_size: int = Field(64, ge=1)
    """Prompts per committed part file: what a kill can cost at most."""

    @model_validator(mode="after")
    def _lengths_in_order(self) -> "Generate":
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens ({self.min_tokens}) is above max_tokens ({self.max_tokens})")
        return self


class Engine(Section):
    """How vLLM runs."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Number format of weights and activations while generating. `auto` is bfloat16 where the GPU or the CPU
    multiplies it, float32 elsewhere: decided when the run begins and kept in its config.yaml."""
    max_model_len: int | None = Field(None, ge=8)
    """Context length in tokens; the model's own by default."""
    kv_cache_gib: float = Field(1.0, gt=0)
    """Memory for the key-value cache on CPU, GiB."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """Share of GPU memory that vLLM may take."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs that share one model."""


class Pair(Section):
    """From scored candidates to preference pairs."""

    strategy: Literal["best_worst", "best_random", "halves", "reference_worst"] = "best_worst"
    """`best_worst`: highest reward of a prompt against its lowest. `best_random`: against any lower one. `halves`: the
    best against the worst, the second best against the second worst, and so on. `reference_worst`: the prompt's
    `reference` against its lowest."""
    max_pairs: int = Field(1, ge=1)
    """At most so many pairs of one prompt, of candidates that differ; `best_worst` gives one."""
    min_margin: float = Field(0.0, ge=0)
    """Drop pairs whose rewards differ by less. Ties are always dropped."""
    max_length_ratio: float | None = Field(None, ge=1)
    """Pair only completions of which the longer has at most so many times the tokens of the shorter."""
    max_similarity: float = Field(1.0, ge=0, le=1)
    """Drop pairs whose texts have a larger share of word 3-grams in common."""

    @model_validator(mode="after")
    def _references_have_no_reward(self) -> Self:
        if self.strategy == "reference_worst" and self.min_margin > 0:
            raise ValueError("min_margin has no meaning with reference_worst, whose chosen texts have no reward")
        return self


class Replay(Section):
    """Pairs of earlier rounds and seed preferences (`prompts.preferences`), mixed in with each round's own."""

    rounds: Annotated[int, Field(ge=0)] | Literal["all"] = 0
    """How many earlier rounds to draw from, or `all`; 0 trains on each round's own pairs alone. Seed preferences are
    round 0."""
    share: Annotated[float, Field(gt=0)] | Literal["all"] = 1.0
    """At most so many replayed pairs for each pair of the round itself; `all` draws every pair there is."""
    half_life: float | None = Field(None, gt=0)
    """Rounds after which a pair is half as likely to be drawn; null: all are equally likely."""
    rescore: bool = added(default=False)
    """Let the run's reward judge what is drawn: where it prefers the rejected text the two change places, and a pair
    that it cannot tell apart is left out. For seed preferences, which no reward of the run has seen."""


class Evaluate(Section):
    """Measures on the held-out prompts: one greedy completion each, and sampled ones as `generate` samples."""

    samples: int = Field(2, ge=1)
    """Sampled completions per held-out prompt."""
    second_reward: RewardConfig | None = None
    """A reward that makes no labels: one that stays behind while the first climbs tells that the first is gamed."""
    tasks: list[str] = added([])
    """Tasks of lm-eval that each policy is put to, as a regression suite; `task_NAME` is what the gate calls them."""
    task_limit: int | None = Field(200, ge=1)
    """The first so many documents of each task; null takes all."""


class RunConfig(Section):
    """A multi-round run."""

    run: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Name of the run and of its folder: letters, digits, `.`, `_`, `-`. `{date}` and `{time}` (both UTC) stand for the
    moment at which its schedule has it start; without a schedule, for that of its start."""
    runs_dir: str = "runs"
    """Folder that holds all runs."""
    rounds: int = Field(2, ge=1)
    """Rounds of generate, score, pair, train, evaluate, decide."""
    seed: int = Field(0, ge=0)
    """Every random choice follows from it."""
    keep_last: int | None = Field(None, ge=1)
    """Keep the policies of so many last rounds and remove older ones, which are as large as the model; null keeps all.
    Tables stay."""
    keep_best: int = Field(1, ge=1)
    """Keep so many of the last promoted policies whatever `keep_last` says; the last of them is the best."""
    stage_timeout_s: int = Field(24 * 3600, ge=1)
    """A stage process that runs longer is ended, in seconds."""
    stall_timeout_s: int = Field(1800, ge=1)
    """A stage process that says nothing for so long, in seconds, is ended; its log then tells where it hung."""
    track: list[Tracker] = []
    """Experiment trackers that are told of every finished stage; docs/tracking.md."""
    executor: Execution = Execution()
    """Which processes make the shards of a stage."""
    series: Series | None = added(None)
    """Begin from the best policy of the last run of a series, with prompts that none has used; docs/series.md."""
    policy: Policy
    prompts: Prompts
    generate: Generate = Generate()
    engine: Engine = Engine()
    reward: RewardConfig = RepetitionReward()
    """What scores candidates; docs/rewards.md."""
    pair: Pair = Pair()
    replay: Replay = Replay()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    gate: Gate = Gate()

    @field_validator("reward", mode="before")
    @classmethod
    def _repetition_by_default(cls, reward: object) -> object:
        return {"kind": "repetition", **reward} if isinstance(reward, dict) else reward

    @model_validator(mode="after")
    def _workers_hold_an_engine(self) -> Self:
        gpus, needed = self.executor.gpus_per_worker, self.engine.tensor_parallel
        if gpus and gpus < needed:
            raise ValueError(
                f"executor.gpus_per_worker ({gpus}) is below engine.tensor_parallel ({needed}): an engine is in one "
                "worker. Raise the one or lower the other"
            )
        return self

    @model_validator(mode="after")
    def _preferences_are_used(self) -> "RunConfig":
        if self.prompts.preferences is not None and self.replay.rounds == 0:
            raise ValueError("prompts.preferences would never be trained on: set replay.rounds to 1 or more")
        return self

    @model_validator(mode="after")
    def _replayed_pairs_can_be_rescored(self) -> "RunConfig":
        if self.pair.strategy == "reference_worst" and self.replay.rescore:
            raise ValueError("replay.rescore: reference_worst prefers the reference whatever a reward says of it")
        if self.prompts.preferences is not None and self.replay.rescore and compares_with_reference(self.reward):
            raise ValueError(
                "replay.rescore: the reward compares with `reference`, which seed preferences lack: leave it off"
            )
        return self

    @model_validator(mode="after")
    def _second_reward_makes_no_labels(self) -> "RunConfig":
        second = self.evaluate.second_reward
        if second is not None and _share_a_part(self.reward, second):
            raise ValueError(
                "evaluate.second_reward has a part of `reward`, so it would climb with it whatever happens: name one "
                "that makes no labels"
            )
        return self

    @model_validator(mode="after")
    def _rules_have_measures(self) -> "RunConfig":
        rules = {f"gate.{kind}.{name}": name for kind in ("require", "guards") for name in getattr(self.gate, kind)}
        if self.gate.judged is not None:
            rules["gate.judged.beside"] = self.gate.judged.beside
        for where, name in rules.items():
            if "second" in name and self.evaluate.second_reward is None:
                raise ValueError(f"{where}: nothing is measured by it: set evaluate.second_reward")
            if name.startswith(TASK) and name.removeprefix(TASK) not in self.evaluate.tasks:
                raise ValueError(f"{where}: no such task is evaluated: name it under evaluate.tasks")
        return self

    @model_validator(mode="after")
    def _series_has_windows(self) -> "RunConfig":
        if self.series is None:
            return self
        train = self.prompts.train
        if not isinstance(train, str) or Path(train).suffix not in windows.FORMATS:
            raise ValueError(
                "series: each run takes the next rows of `prompts.train`: name a JSONL file there, *.jsonl"
            )
        if self.prompts.train_limit is not None:
            raise ValueError("series: `series.prompts` says how many rows a run takes; leave out prompts.train_limit")
        return self

    @property
    def begun(self) -> Begun | None:
        """What it came to when it began as a run of a series; None for one of no series, such as a fork of one."""
        begun = self.series.begun if self.series else None
        return begun if begun and begun.by == self.run else None

    @property
    def folder(self) -> Path:
        """Where everything of this run lies."""
        return Path(self.runs_dir) / self.run

    @property
    def models(self) -> list[str]:
        """The folders and hub ids of all models that it needs."""
        judging = (self.reward, self.evaluate.second_reward)
        return [self.policy.model, *(name for reward in judging if reward for name in models(reward))]


def _share_a_part(one: RewardConfig, other: RewardConfig) -> bool:
    known = [settings(part) for part in parts(one)]
    return any(settings(part) in known for part in parts(other))


def load(path: Path, overrides: list[str] | None = None, *, due: datetime | None = None) -> RunConfig:
    """Read a YAML config, apply `a.b=value` overrides, validate, and settle paths and number formats (`parse`).

    Relative paths in the file are relative to the working directory, as a shell user expects; `package:PATH` names a
    file that comes with pco, also as the config itself. `due` is the moment that the run's name may hold; now if none.

    Raises BadInput naming the file, the key, what was expected and, for an unknown key, the nearest known one.
    """
    return parse(config_file.read(RunConfig, path, overrides or []), source=str(path), due=due)


def parse(
    raw: dict[str, Any],
    *,
    source: str,
    recorded: Mapping[str, Any] | None = None,
    due: datetime | None = None,
) -> RunConfig:
    """Validate a config, make its name whole and its paths absolute, and decide its number formats.

    `recorded` is the `config.yaml` of the run that it goes on from; by default that in its folder, if there is one.

    Raises BadInput that lists every fault with its key.
    """
    config = _absolute(config_file.validated(RunConfig, names.named(raw, due), source=source))
    recorded = recorded or config_file.of_run(config.folder)
    return formats.decided(in_its_series(config, recorded), recorded)


def in_its_series(config: RunConfig, recorded: Mapping[str, Any] | None) -> RunConfig:
    """The config of a run of a series with what it came to when it began, if `recorded`, its config.yaml, tells.

    Where the config names another policy or other prompts than then, these stay, and `check_same` finds them.
    """
    of_run = recorded.get("series") if recorded else None
    written = of_run.get("begun") if isinstance(of_run, dict) else None
    if config.series is None or config.series.begun is not None or not written:
        return config
    begun = Begun.model_validate(written)
    if begun.by != config.run or not recorded:
        return config
    config = config.model_copy(update={"series": config.series.model_copy(update={"begun": begun})})
    if (config.policy.model, config.policy.revision) == (begun.model, begun.revision):
        then = {name: recorded["policy"][name] for name in ("model", "revision")}
        config = config.model_copy(update={"policy": config.policy.model_copy(update=then)})
    if config.prompts.train == begun.train:
        prompts = config.prompts.model_copy(update={"train": recorded["prompts"]["train"]})
        config = config.model_copy(update={"prompts": prompts})
    return config


def _absolute(config: RunConfig) -> RunConfig:
    """Stage processes and Prefect workers have other working directories, so no path may stay relative."""
    model = Path(config.policy.model).expanduser()
    return config.model_copy(
        update={
            "runs_dir": str(Path(config.runs_dir).expanduser().resolve()),
            "policy": config.policy.model_copy(
                update={"model": str(model.resolve()) if files.exists(model) else config.policy.model}
            ),
            "reward": absolute(config.reward),
            "train": absolute_loss(config.train),
            "evaluate": config.evaluate.model_copy(
                update={
                    "second_reward": None if (second := config.evaluate.second_reward) is None else absolute(second)
                }
            ),
            "prompts": config.prompts.absolute(),
        }
    )
