"""The algorithm: which stage follows which, and what each is given (iterated training, arXiv 2312.16682, section 3).

The only place that knows the order. A flow runs the stages, `pco status` looks at them, `pco fork` shares them: each
hands `walk` what to do with a stage.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from data import store
from data.store import Manifest
from pco import rewards
from pco.config.run import RunConfig
from pco.pairing import replay
from pco.runs import policy
from pco.stage import Artifact, Stage, StageName, file_fingerprint
from pco.training import user_loss


def walk(
    config: RunConfig, do: Callable[[Stage], Manifest], *, decided: Callable[[int, Artifact], None] = lambda *_: None
) -> None:
    """Hand every stage of a run to `do`, in order, until the rounds are through or the gate ends the run.

    `do` makes sure that a stage is finished and returns its manifest; to end the walk early it raises. `decided` is
    told of each round after its gate has spoken, with the best policy so far.
    """

    def done(name: StageName, number: int, **inputs: Artifact) -> Artifact:
        stage = Stage(name, number, config, inputs)
        return stage.made(do(stage))

    def judged(name: StageName, number: int, **inputs: Artifact) -> Artifact:
        return done(name, number, **inputs, **rewards.inputs(Stage(name, number, config, {})))

    prepare = planned(config)
    manifest = do(prepare)
    prompts = prepare.made(manifest)
    with_prompts = rewards.reads_prompts(config.reward)
    current = best = start_policy = policy.starting(manifest)
    start = of_best = judged("evaluate", 0, policy=start_policy, prompts=prompts)
    pairs_of = {0: prompts} if config.prompts.preferences is not None else {}
    verdicts: list[bool] = []
    for number in range(1, config.rounds + 1):
        candidates = done("generate", number, policy=current, prompts=prompts)
        scores = judged("score", number, candidates=candidates, **({"prompts": prompts} if with_prompts else {}))
        every = range(max(0, number - config.replay.rounds), number)
        earlier = {replay.input_name(one): pairs_of[one] for one in every if one in pairs_of}
        if config.pair.strategy == "reference_worst":
            earlier |= {"prompts": prompts, "policy": current}
        if config.replay.rescore:
            earlier |= rewards.inputs(Stage("pair", number, config, {})) | (
                {"prompts": prompts} if with_prompts else {}
            )
        pairs = pairs_of[number] = done("pair", number, candidates=candidates, scores=scores, **earlier)
        learned = {"policy": current, "pairs": pairs, **user_loss.inputs(Stage("train", number, config, {}))}
        if config.prompts.feedback is not None:
            learned["prompts"] = prompts
        if (reference := _reference(config, current, start_policy)) is not None:
            learned["reference"] = done("refer", number, policy=reference, pairs=pairs)
        train = Stage("train", number, _gentler(config, verdicts), learned)
        trained = policy.trained(train, do(train))
        evaluation = judged("evaluate", number, policy=trained, prompts=prompts, start=start, previous=of_best)
        decide = Stage("decide", number, config, {"evaluation": evaluation, "previous": of_best, "start": start})
        verdicts.append(do(decide).outputs["promoted"] == "yes")
        if verdicts[-1]:
            best, of_best = trained, evaluation
        decided(number, best)
        if is_over(config, verdicts):
            return
        current = trained if config.gate.otherwise == "continue_anyway" else best


def planned(config: RunConfig) -> Stage:
    """The stage for a config; its inputs are the user's files, by content.

    A file that is gone since it was frozen into the run counts as unchanged, so that a run may be moved without it.

    Raises BadInput when one of them cannot be read.
    """
    names = ("train", "heldout", "heldout_text", "preferences", "feedback")
    paths = {name: Path(path) for name in names if (path := getattr(config.prompts, name)) is not None}
    frozen = store.read_manifest(Stage("prepare", 0, config, {}).folder)
    recorded = frozen.inputs if frozen else {}
    inputs = {
        name: Artifact(path, file_fingerprint(path, recorded.get(name), key=f"prompts.{name}"))
        for name, path in paths.items()
    }
    return Stage("prepare", 0, config, inputs)


def is_over(config: RunConfig, verdicts: Sequence[bool]) -> bool:
    """Whether a run ends after rounds with these verdicts, be it that all are through or that the gate ends it."""
    if len(verdicts) >= config.rounds:
        return True
    goes_on = config.gate.otherwise in {"roll_back", "continue_anyway"}
    return _refused(verdicts) >= (config.gate.patience if goes_on else 1)


def _refused(verdicts: Sequence[bool]) -> int:
    """How many of the last rounds were refused one after the other."""
    return next((i for i, promoted in enumerate(reversed(verdicts)) if promoted), len(verdicts))


def _gentler(config: RunConfig, verdicts: Sequence[bool]) -> RunConfig:
    """The config with the learning rate that a round is trained with after these verdicts."""
    refused = _refused(verdicts)
    if config.gate.otherwise != "roll_back" or not refused:
        return config
    rate = config.train.learning_rate * config.gate.retry_learning_rate**refused
    return config.model_copy(update={"train": config.train.model_copy(update={"learning_rate": rate})})


def _reference(config: RunConfig, current: Artifact, start: Artifact) -> Artifact | None:
    """The policy whose log-probabilities the loss needs, if it needs any."""
    return {None: None, "previous": current, "start": start}[config.train.loss.reference_policy]
