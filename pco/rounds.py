"""The algorithm: which stage follows which, and what each is given (iterated training, arXiv 2312.16682, section 3).

The only place that knows it. A flow runs the stages, `pco status` looks at them, `pco fork` shares them: each hands
`walk` what to do with a stage.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data import store
from data.errors import BadInput
from data.store import Manifest
from pco import rewards
from pco.config import reward as reward_config
from pco.config.gate import Gate
from pco.config.prompts import FILES, sources_of
from pco.config.run import RunConfig
from pco.evaluation import looks
from pco.evaluation.decision import Decision
from pco.evaluation.looks import Look
from pco.pairing import replay
from pco.specs import TESTS, StageName, stages_of
from pco.stage import Artifact, Stage, file_fingerprint, source_fingerprint
from pco.training import user_loss

TEMPLATE_DATE = ".template_date"  # after a model's name, in the outputs of `prepare`
_NO_SHARE = 1e-6  # of an error rate: what is left of a sum of shares, but for rounding


@dataclass
class State:
    """What a run has made so far: policies by the part they play, and what each stage made last."""

    round: int = 0
    policies: dict[str, Artifact] = field(default_factory=dict)
    """`start`; `trained`, the newest; `current`, which a round samples from and by default trains; `best`."""
    evaluations: dict[str, Artifact] = field(default_factory=dict)
    """Of the policies `start`, `trained` and `best`."""
    made: dict[StageName, Artifact] = field(default_factory=dict)
    pairs: dict[int, Artifact] = field(default_factory=dict)
    """By round; of round 0 the seed preferences."""
    promoted: list[bool] = field(default_factory=list)
    """Of each round that is decided."""
    spent: float = 0.0
    """Of `gate.error_rate`: the shares of the rounds that were refused."""
    test_set: str = ""
    """The digest of what the test prompts come from."""


def walk(
    config: RunConfig,
    do: Callable[[Stage], Manifest],
    *,
    decided: Callable[[int, Artifact], None] = lambda *_: None,
    again: bool = False,
) -> None:
    """Hand every stage of a run to `do`, in order, until the rounds are through or the gate ends the run.

    Round 0 is the start: it freezes the prompts and evaluates the starting policy. `do` makes sure that a stage is
    finished and returns its manifest; to end the walk early it raises. `decided` is called after each round with its
    number and the best policy so far. At the end stands the test, if there is one to be made; `again` allows another
    look at a test set that was looked at for another policy.
    """
    state = State()
    while True:
        _check_error_is_left(config, state)
        for name in stages_in(config, state.round):
            stage = Stage(name, state.round, _config_of(name, config, state), inputs_of(name, config, state))
            manifest = do(stage)
            _keep(stage, manifest, state)
            if name == "prepare":
                config = dated(config, manifest.outputs)
        if state.round:
            decided(state.round, state.policies["best"])
        if is_over(config, state.promoted):
            break
        state.round += 1
    look = _look(config, state, again=again)
    if look is not None:
        state.round = look.round
        for name in TESTS:
            stage = Stage(name, state.round, config, inputs_of(name, config, state))
            _keep(stage, do(stage), state)


def stages_in(config: RunConfig, number: int) -> list[StageName]:
    """The stages of a round of a run on disk, in order.

    Log-probabilities of a reference are left out where the round's training was taken over from a run that did without
    them: nothing would read them.
    """
    names = stages_of(config, number)
    if "refer" not in names:
        return names
    train = Stage("train", number, config).folder
    manifest = store.read_manifest(train) if store.origin(train) is not None else None
    if manifest is not None and "reference" not in manifest.inputs:
        names.remove("refer")
    return names


def _look(config: RunConfig, state: State, *, again: bool) -> Look | None:
    """The look at the test set that is to be taken, or was: at the best policy, unless that is the starting one."""
    best = state.policies["best"].fingerprint
    if not config.prompts.has_test or best == state.policies["start"].fingerprint:
        return None
    new = Look(config.run, state.round, best, state.test_set)
    earlier = [look for look in looks.read(config.folder) if look.prompts == state.test_set]
    of_best = [look for look in earlier if look.policy == best]
    own = [look for look in of_best if look.run == config.run]
    if own:
        return own[0]
    return new if again or of_best or not earlier else None


def test_rounds(config: RunConfig) -> list[int]:
    """The rounds whose folders hold a test, or will: those after which the run looked at its test set.

    Before the first look it is the last round, unless no policy was promoted.
    """
    if not config.prompts.has_test:
        return []
    frozen = store.read_manifest(Stage("prepare_test", 0, config).folder)
    test_set = frozen.inputs["test"] if frozen else ""
    earlier = [look for look in looks.read(config.folder) if look.prompts == test_set]
    own = [look.round for look in earlier if look.run == config.run]
    if own:
        return list(dict.fromkeys(own))
    promoted = [decision.promoted for decision in decisions(config).values()]
    if not is_over(config, promoted):
        return [] if earlier else [config.rounds]
    if not any(promoted) or (earlier and _best(config, promoted) not in {look.policy for look in earlier}):
        return []
    return [len(promoted)]


def _best(config: RunConfig, promoted: Sequence[bool]) -> str:
    """The digest of the policy that was promoted last."""
    number = max(number for number, yes in enumerate(promoted, start=1) if yes)
    trained = store.read_manifest(Stage("train", number, config).folder)
    return trained.outputs["policy"] if trained else ""


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


def plan(config: RunConfig) -> str:
    """What a run's trainings begin from, where that is not the policy of the round before; else nothing."""
    if config.train.begin_from == "previous":
        return ""
    rounds, share = config.replay.rounds, config.replay.share
    if rounds == 0:
        return (
            "Each round trains the starting policy anew, on the round's own pairs alone: set replay.rounds to `all` to "
            "train it on those of earlier rounds, too."
        )
    earlier = "all earlier rounds" if rounds == "all" else f"{rounds} earlier round(s)"
    drawn = "all pairs" if share == "all" else f"at most {share:g} pair(s) for each of them"
    return f"Each round trains the starting policy anew, on the round's own pairs and {drawn} of {earlier}."


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
        case "prepare" | "prepare_test":
            earlier = {"prompts": made["prepare"]} if name == "prepare_test" else {}
            return earlier | _user_files(stage)
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
            part = "start" if config.train.begin_from == "start" else "current"
            inputs = {"policy": policies[part], "pairs": made["pair"], **user_loss.inputs(stage)}
            if config.prompts.feedback is not None:
                inputs["prompts"] = made["prepare"]
            inputs |= {"reference": made["refer"]} if "refer" in made else {}
        case "evaluate" | "test_start" | "test":
            inputs = _of_evaluation(stage, state)
        case "decide":
            new, best, start = (evaluations[part] for part in ("trained", "best", "start"))
            inputs = {"evaluation": new, "previous": best, "start": start}
    return inputs


def _of_evaluation(stage: Stage, state: State) -> dict[str, Artifact]:
    made, policies, evaluations = state.made, state.policies, state.evaluations
    prompts = made["prepare" if stage.name == "evaluate" else "prepare_test"]
    inputs = {"prompts": prompts, **rewards.inputs(stage)}
    match stage.name:
        case "test_start":
            return {"policy": policies["start"], **inputs}
        case "test":
            return {"policy": policies["best"], "start": made["test_start"], **inputs}
    others = {"start": evaluations["start"], "previous": evaluations["best"]} if state.round else {}
    return {"policy": policies["trained"], **inputs, **others}


def _of_judging(stage: Stage, prompts: Artifact) -> dict[str, Artifact]:
    """What the run's reward needs beside what it judges."""
    return rewards.inputs(stage) | ({"prompts": prompts} if rewards.reads_prompts(stage.config.reward) else {})


def _user_files(stage: Stage) -> dict[str, Artifact]:
    """The user's files and sources, by content. One that is gone since it was frozen into the run is unchanged."""
    prompts = stage.config.prompts
    frozen = store.read_manifest(stage.folder)
    recorded = frozen.inputs if frozen else {}
    values = (
        {"test": prompts.of_test} if stage.name == "prepare_test" else {name: getattr(prompts, name) for name in FILES}
    )
    inputs = {}
    for name, value in values.items():
        if isinstance(value, str):
            fingerprint = file_fingerprint(Path(value), recorded.get(name), key=f"prompts.{name}")
            inputs[name] = Artifact(Path(value), fingerprint)
        for place, source in sources_of(name, value).items():
            fingerprint = source_fingerprint(source, recorded.get(place), key=f"prompts.{place}")
            inputs[place] = Artifact(Path(source.dataset), fingerprint)
    return inputs


def _earlier_pairs(config: RunConfig, state: State) -> dict[str, Artifact]:
    """Those that a round may replay: of as many rounds before it as the config says, and the seed preferences."""
    rounds = state.round if config.replay.rounds == "all" else config.replay.rounds
    numbers = range(max(0, state.round - rounds), state.round)
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
        case "prepare_test":
            state.test_set = manifest.inputs["test"]
        case "pair":
            state.pairs[stage.round] = result
        case "train":
            policies["trained"] = stage.saved_model(manifest)
        case "evaluate":
            evaluations |= {"trained": result} if stage.round else dict.fromkeys(("start", "trained", "best"), result)
        case "decide":
            state.promoted.append(Decision.of(manifest).promoted)
            state.spent += 0.0 if state.promoted[-1] else stage.config.gate.share or 0.0
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


def _check_error_is_left(config: RunConfig, state: State) -> None:
    """Raise BadInput before a round is begun that could not be promoted, because others have spent the error rate."""
    rate = config.gate.error_rate
    if rate is None or not state.round or _share(config, state) > _NO_SHARE:
        return
    decided = len(state.promoted)
    raise BadInput(
        f"gate.error_rate: the refused ones among {decided} rounds have spent {state.spent:g} of {rate:g}, and with "
        f"nothing left round {state.round} could not be promoted. Rounds that are added share what is left: raise the "
        f"promise (`pco resume {config.run} --set gate.error_rate={2 * state.spent:.3g}`), or fork the run."
    )


def _share(config: RunConfig, state: State) -> float:
    """What a round has of the run's error rate: an equal part of what is left, or what it was decided with.

    Refused rounds have spent theirs, promoted ones hand it on (a fallback procedure: Wiens 2003, Bretz et al. 2009).
    """
    manifest = store.read_manifest(Stage("decide", state.round, config).folder)
    decided = Gate.model_validate(manifest.settings["gate"]).share if manifest else None
    if decided is not None:
        return decided
    return ((config.gate.error_rate or 0.0) - state.spent) / (config.rounds - state.round + 1)


def _config_of(name: StageName, config: RunConfig, state: State) -> RunConfig:
    """The config with what follows from earlier rounds: the learning rate, the share of the gate's error rate.

    After rounds that were rolled back the learning rate is a smaller one.
    """
    if name == "decide" and config.gate.error_rate is not None:
        return config.model_copy(update={"gate": config.gate.of_round(_share(config, state))})
    refused = _refused(state.promoted)
    if name != "train" or config.gate.otherwise != "roll_back" or not refused:
        return config
    rate = config.train.learning_rate * config.gate.retry_learning_rate**refused
    return config.model_copy(update={"train": config.train.model_copy(update={"learning_rate": rate})})
