"""What is known of each kind of stage, in one table: `SPECS`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pco.config import reward as reward_config
from pco.config import reward_training
from pco.config.prompts import DataSource
from pco.config.reward_training import RewardTraining
from pco.config.run import RunConfig
from pco.config.section import settings_of
from pco.config.trace import Trace
from pco.config.train import deciding

StageName = Literal[
    "prepare",
    "prepare_test",
    "generate",
    "score",
    "pair",
    "refer",
    "train",
    "evaluate",
    "decide",
    "test_start",
    "test",
]
RewardStageName = Literal["split", "train_reward", "evaluate_reward"]
TraceStageName = Literal["trace"]
AnyStageName = StageName | RewardStageName | TraceStageName

_FREE_MEMORY = "Free memory, then resume."
_LESS_FOR_ENGINE = "Lower engine.kv_cache_gib (on a GPU engine.gpu_memory_utilization), or free memory; then resume."
_LESS_FOR_REWARD = "Free memory (a reward model needs less with a lower max_tokens_per_batch), then resume."
_LESS_FOR_TRAINING = (
    "Less is needed with train.micro_batch_pairs=1, train.gradient_checkpointing=true or a higher train.zero_stage, "
    "which may change in the middle: add `--set train.micro_batch_pairs=1` to the command that resumes it."
)


_LESS_FOR_TRACE = "Free memory, or name fewer parameters: `--parameters last-blocks` or `head`."


def _never(_: RunConfig) -> bool:
    return False


def _always(_: RunConfig) -> bool:
    return True


@dataclass(frozen=True)
class StageSpec:
    """What is known of one kind of stage."""

    name: AnyStageName
    folder: str
    """Its folder in that of its round, named for its tables."""
    settings: Callable[[Any], dict[str, Any]]
    """Those settings of the config that decide its result: memory, time limits and paths do not."""
    package: str = "pco.stages"
    """Where the module of its name lies."""
    version: int = 1
    """Raised when its code makes other results from the same settings and inputs."""
    valid_versions: tuple[int, ...] = ()
    """Earlier versions whose finished work stays: what they made was right when it was made."""
    in_start: Callable[[RunConfig], bool] = _never
    """Whether the start (round 0) has it."""
    in_round: Callable[[RunConfig], bool] = _always
    """Whether a round has it."""
    distributed: bool = False
    """Whether it runs as one process per rank under DeepSpeed's launcher."""
    workers: bool = False
    """Whether workers may share its shards: where a shard is much work, and no order among them matters."""
    model: str = ""
    """The folder, in that of its round, of the model that it saves; also the `outputs` key of the model's digest."""
    merged: str = ""
    """As `model`, of the whole model that it makes where it is given an adapter of one."""
    begins_with: str = ""
    """The input that holds the weights which it trains."""
    out_of_memory: str = _FREE_MEMORY
    """What to do when memory runs out."""
    recorded_as: str = ""
    """Its name in fingerprints and manifests, where an older one is on disk."""


def _rendering(config: RunConfig) -> dict[str, Any]:
    names = ("prompt_format", "system", "system_role", "template_date")
    return {name: value for name, value in settings_of(config.policy).items() if name in names}


def _engine(config: RunConfig) -> dict[str, Any]:
    return config.engine.model_dump(mode="json", include={"dtype", "max_model_len", "tensor_parallel"})


def _prepare(config: RunConfig) -> dict[str, Any]:
    prompts = config.prompts
    settings: dict[str, Any] = {
        "model": config.policy.model,
        "revision": config.policy.revision,
        "train_limit": prompts.train_limit,
        "heldout_limit": prompts.heldout_limit,
    }
    if prompts.test_share is not None:
        settings["test_share"] = prompts.test_share
    if prompts.exclude:
        settings["exclude"] = sorted(prompts.exclude)
    named = prompts.named()
    if named:
        settings["sources"] = {
            place: source.settings for sources in named.values() for place, source in sources.items()
        }
    if any(isinstance(value, list) for value in (prompts.train, prompts.preferences)):
        settings["seed"] = config.seed  # which rows a mixture takes
    # How the user's completions are rendered decides their tokens; prompts are rendered where they are used.
    if prompts.preferences or prompts.feedback:
        settings["rendering"] = _rendering(config)
    return settings


def _prepare_test(config: RunConfig) -> dict[str, Any]:
    prompts = config.prompts
    excluded = {"exclude": sorted(prompts.exclude)} if prompts.exclude else {}
    if prompts.test_share is not None:
        return {"test_share": prompts.test_share, "heldout_limit": prompts.heldout_limit, **excluded}
    return (
        {"sources": {"test": prompts.test.settings}, **excluded} if isinstance(prompts.test, DataSource) else excluded
    )


def _generate(config: RunConfig) -> dict[str, Any]:
    return {
        "rendering": _rendering(config),
        "generate": settings_of(config.generate),
        "engine": _engine(config),
        "seed": config.seed,
    }


def _score(config: RunConfig) -> dict[str, Any]:
    return {"reward": reward_config.settings(config.reward)}


def _pair(config: RunConfig) -> dict[str, Any]:
    judging = _score(config) if config.replay.rescore else {}
    return {"pair": settings_of(config.pair), "replay": settings_of(config.replay), "seed": config.seed, **judging}


def _refer(config: RunConfig) -> dict[str, Any]:
    return {"precision": config.train.precision}


def _train(config: RunConfig | RewardTraining) -> dict[str, Any]:
    return {"train": deciding(config.train), "seed": config.seed}


def _evaluate(config: RunConfig) -> dict[str, Any]:
    settings, evaluate, second = _generate(config), settings_of(config.evaluate), config.evaluate.second_reward
    del settings["generate"]["n"]
    if not config.evaluate.tasks:
        del evaluate["task_limit"]
    evaluate["second_reward"] = second and reward_config.settings(second)
    if config.gate.judged is not None:
        evaluate["judged_share"] = config.gate.judged.share
    return {**settings, "evaluate": evaluate, **_score(config)}


def _test(config: RunConfig) -> dict[str, Any]:
    """An evaluation's, without the tasks of lm-eval, whose documents the gate may have seen; all prompts are judged."""
    settings = _evaluate(config)
    for name in ("tasks", "task_limit", "judged_share"):
        settings["evaluate"].pop(name, None)
    return settings


def _trace(config: Trace) -> dict[str, Any]:
    return config.settings


def _has_test(config: RunConfig) -> bool:
    return config.prompts.has_test


def _decide(config: RunConfig) -> dict[str, Any]:
    gate = config.gate.model_dump(mode="json", include={"require", "guards", "judged"})
    return {"gate": {name: value for name, value in gate.items() if value is not None}}


SPECS: dict[AnyStageName, StageSpec] = {
    spec.name: spec
    for spec in (
        # Of a run, in the order of a round.
        StageSpec("prepare", "prompts", _prepare, merged="policy", in_start=_always, in_round=_never),
        StageSpec("prepare_test", "test_prompts", _prepare_test, in_start=_has_test, in_round=_never),
        StageSpec("generate", "candidates", _generate, workers=True, out_of_memory=_LESS_FOR_ENGINE),
        StageSpec("score", "scores", _score, workers=True, out_of_memory=_LESS_FOR_REWARD),
        StageSpec("pair", "pairs", _pair, out_of_memory=_LESS_FOR_REWARD),
        StageSpec(
            "refer",
            "reference",
            _refer,
            workers=True,
            in_round=lambda config: config.train.loss.reference_policy is not None,
        ),
        StageSpec(
            "train",
            "training",
            _train,
            distributed=True,
            model="policy",
            begins_with="policy",
            out_of_memory=_LESS_FOR_TRAINING,
        ),
        StageSpec(
            "evaluate",
            "evaluation",
            _evaluate,
            version=2,
            in_start=_always,
            workers=True,
            out_of_memory=_LESS_FOR_ENGINE,
        ),
        # Version 1 took its intervals from a bootstrap.
        StageSpec("decide", "decision", _decide, version=2, valid_versions=(1,)),
        # After the last round, outside of any: the starting and the best policy on the test prompts.
        StageSpec("test_start", "test_start", _test, in_round=_never, workers=True, out_of_memory=_LESS_FOR_ENGINE),
        StageSpec("test", "test", _test, in_round=_never, workers=True, out_of_memory=_LESS_FOR_ENGINE),
        # Of a reward training.
        StageSpec("split", "pairs", reward_training.of_split, "pco.reward_training"),
        StageSpec(
            "train_reward",
            "training",
            _train,
            "pco.reward_training",
            distributed=True,
            model="model",
            begins_with="model",
            out_of_memory=_LESS_FOR_TRAINING,
        ),
        StageSpec(
            "evaluate_reward", "test", lambda _: {}, "pco.reward_training", workers=True, recorded_as="test_reward"
        ),
        # Of a trace, which belongs to no round.
        StageSpec("trace", "influence", _trace, out_of_memory=_LESS_FOR_TRACE),
    )
}
RUN_STAGES: tuple[StageName, ...] = get_args(StageName)  # in the order of a round
EVALUATIONS: tuple[StageName, ...] = ("evaluate", "test_start", "test")
TESTS: tuple[StageName, ...] = ("test_start", "test")  # of a run that has ended


def stages_of(config: RunConfig, number: int) -> list[StageName]:
    """The stages of a round in the order in which they run; those of round 0 are the start's."""
    if number == 0:
        return [name for name in RUN_STAGES if SPECS[name].in_start(config)]
    return [name for name in RUN_STAGES if SPECS[name].in_round(config)]
