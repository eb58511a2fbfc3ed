"""The algorithm: which stage follows which, and what each is given (iterated training, arXiv 2312.16682, section 3).

The only place that knows it. A flow runs the stages, `pco status` looks at them, `pco fork` shares them: each hands
`walk` what to do with a stage.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data import store
from data.store import Manifest
from pco import rewards
from pco.config import reward as reward_config
from pco.config.prompts import FILES
from pco.config.run import RunConfig
from pco.evaluation.decision import Decision
from pco.pairing import replay
from pco.stage import Artifact, Stage, StageName, file_fingerprint, source_fingerprint, stages_of
from pco.training import user_loss

TEMPLATE_DATE = ".template_date"  # after a model's name, in the outputs of `prepare`


@dataclass
class State:
    """What a run has made so far: policies by the part they play, and what each stage made last."""

    round: int = 0
    policies: dict[str, Artifact] = field(default_factory=dict)
    """`start`; `trained`, the newest; `current`, which a round begins from; `best`."""
    evaluations: dict[str, Artifact] = field(default_factory=dict)
    """Of the policies `start`, `trained` and `best`."""
    made: dict[StageName, Artifact] = field(default_factory=dict)
    pairs: dict[int, Artifact] = field(default_factory=dict)
    """By round; of round 0 the seed preferences."""
    promoted: list[bool] = field(default_factory=list)
    """Of each round that is decided."""


def walk(
    config: RunConfig, do: Callable[[Stage], Manifest], *, decided: Callable[[int, Artifact], None] = lambda *_: None
) -> None:
    """Hand every stage of a run to `do`, in order, until the rounds are through or the gate ends the run.

    Round 0 is the start: it freezes the prompts and evaluates the starting policy. `do` makes sure that a stage is
    finished and returns its manifest; to end the walk early it raises. `decided` is called after each round with its
    number and the best policy so far.
    """
    state = State()
    while True:
        for name in stages_of(config, state.round):
            stage = Stage(name, state.round, _config_of(name, config, state), inputs_of(name, config, state))
            manifest = do(stage)
            _keep(stage, manifest, state)
            if name == "prepare":
                config = dated(config, manifest.outputs)
        if state.round:
            decided(state.round, state.policies["best"])
        if is_over(config, state.promoted):
            return
        state.round += 1


def dated(config: RunConfig, outputs: Mapping[str, str]) -> RunConfig:
    """The config with the dates that its chat templates are told, as `prepare` put them into its `outputs`.

    Only templates that write today's date have one there, where the config names none. So a run writes the date of its
    start in all rounds, and is the same run whenever its config is read.
    """
    dates = {name.removesuffix(TEMPLATE_DATE): day for name, day in outputs.items() if name.endswith(TEMPLATE_DATE)}
    if not dates:
        return config
    second = config.evaluate.second_reward
    update: dict[str, object] = {
        "reward": reward_config.dated(config.reward, dates, "reward"),
        "evaluate": config.evaluate.model_copy(
            update={"second_reward": second and reward_config.dated(second, dates, "second_reward")}
        ),
    }
    if "policy" in dates:
        update["policy"] = config.policy.model_copy(update={"template_date": dates["policy"]})
    return config.model_copy(update=update)


def as_begun(config: RunConfig) -> RunConfig:
    """The config of a run with the dates that it began with, if it has begun."""
    prepared = store.read_manifest(Stage("prepare", 0, config).folder)
    return config if prepared is None else dated(config, prepared.outputs)


def inputs_of(name: StageName, config: RunConfig, state: State) -> dict[str, Artifact]:
    """What a stage of the round that a run is at is given.

    Raises BadInput when one of the user's files cannot be read.
    """
    stage, made, policies, evaluations = Stage(name, state.round, config), state.made, state.policies, state.evaluations
    match name:
        case "prepare":
            return _user_files(stage)
        case "generate":
            inputs = {"policy": policies["current"], "prompts": made["prepare"]}
        case "score":
            inputs = {"candidates": made["generate"], **_of_judging(stage, made["prepare"])}
        case "pair":
            inputs = {"candidates": made["generate"], "scores": made["score"], **_earlier_pairs(config, state)}
            if config.pair.strategy == "reference_worst":
                inputs |= {"prompts": made["prepare"], "policy": policies["current"]}
            if config.replay.rescore:
                inputs |= _of_judging(stage, made["prepare"])
        case "refer":
            part = "start" if config.train.loss.reference_policy == "start" else "current"
            inputs = {"policy": policies[part], "pairs": made["pair"]}
        case "train":
            inputs = {"policy": policies["current"], "pairs": made["pair"], **user_loss.inputs(stage)}
            if config.prompts.feedback is not None:
                inputs["prompts"] = made["prepare"]
            inputs |= {"reference": made["refer"]} if "refer" in made else {}
        case "evaluate":
            inputs = {"policy": policies["trained"], "prompts": made["prepare"], **rewards.inputs(stage)}
            if state.round:
                inputs |= {"start": evaluations["start"], "previous": evaluations["best"]}
        case "decide":
            new, best, start = (evaluations[part] for part in ("trained", "best", "start"))
            inputs = {"evaluation": new, "previous": best, "start": start}
    return inputs


def _of_judging(stage: Stage, prompts: Artifact) -> dict[str, Artifact]:
    """What the run's reward needs beside what it judges."""
    return rewards.inputs(stage) | ({"prompts": prompts} if rewards.reads_prompts(stage.config.reward) else {})


def _user_files(prepare: Stage) -> dict[str, Artifact]:
    """The user's files and sources, by content. One that is gone since it was frozen into the run is unchanged."""
    prompts = prepare.config.prompts
    frozen = store.read_manifest(prepare.folder)
    recorded = frozen.inputs if frozen else {}
    named, inputs = prompts.named(), {}
    for name in FILES:
        path = getattr(prompts, name)
        if isinstance(path, str):
            fingerprint = file_fingerprint(Path(path), recorded.get(name), key=f"prompts.{name}")
            inputs[name] = Artifact(Path(path), fingerprint)
        for place, source in named.get(name, {}).items():
            fingerprint = source_fingerprint(source, recorded.get(place), key=f"prompts.{place}")
            inputs[place] = Artifact(Path(source.dataset), fingerprint)
    return inputs


def _earlier_pairs(config: RunConfig, state: State) -> dict[str, Artifact]:
    """Those that a round may replay: of as many rounds before it as the config says, and the seed preferences."""
    numbers = range(max(0, state.round - config.replay.rounds), state.round)
    return {replay.input_name(number): state.pairs[number] for number in numbers if number in state.pairs}


def _keep(stage: Stage, manifest: Manifest, state: State) -> None:
    """Note what a stage made, for those to come."""
    state.made[stage.name] = result = stage.result(manifest)  # type: ignore[index]  # a run's stage
    policies, evaluations = state.policies, state.evaluations
    match stage.name:
        case "prepare":
            policies |= dict.fromkeys(("start", "trained", "current", "best"), stage.starting_policy(manifest))
            if stage.config.prompts.preferences is not None:
                state.pairs[0] = result
        case "pair":
            state.pairs[stage.round] = result
        case "train":
            policies["trained"] = stage.saved_model(manifest)
        case "evaluate":
            evaluations |= {"trained": result} if stage.round else dict.fromkeys(("start", "trained", "best"), result)
        case "decide":
            state.promoted.append(Decision.of(manifest).promoted)
            if state.promoted[-1]:
                policies["best"], evaluations["best"] = policies["trained"], evaluations["trained"]
            goes_on = stage.config.gate.otherwise == "continue_anyway"
            policies["current"] = policies["trained" if goes_on else "best"]


def decisions(config: RunConfig) -> dict[int, Decision]:
    """What the gate decided of each round that is decided, as it stands on disk."""
    manifests = {
        number: store.read_manifest(Stage("decide", number, config).folder) for number in range(1, config.rounds + 1)
    }
    return {number: Decision.of(manifest) for number, manifest in manifests.items() if manifest is not None}


def is_over(config: RunConfig, promoted: Sequence[bool]) -> bool:
    """Whether a run ends after rounds with these decisions: all are through, or the gate ends it."""
    if len(promoted) >= config.rounds:
        return True
    goes_on = config.gate.otherwise in {"roll_back", "continue_anyway"}
    return _refused(promoted) >= (config.gate.patience if goes_on else 1)


def _refused(promoted: Sequence[bool]) -> int:
    """How many of the last rounds were refused one after the other."""
    return next((i for i, yes in enumerate(reversed(promoted)) if yes), len(promoted))


def _config_of(name: StageName, config: RunConfig, state: State) -> RunConfig:
    """The config with the learning rate that a round is trained with: a smaller one after rounds rolled back."""
    refused = _refused(state.promoted)
    if name != "train" or config.gate.otherwise != "roll_back" or not refused:
        return config
    rate = config.train.learning_rate * config.gate.retry_learning_rate**refused
    return config.model_copy(update={"train": config.train.model_copy(update={"learning_rate": rate})})
