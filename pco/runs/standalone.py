"""Policies evaluated outside of a run: each as the start of a run of its own, with all that its stages promise."""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path

from data import store
from data.errors import BadInput
from pco import rounds
from pco.config.run import Generate, RunConfig, load, parse
from pco.runs import retention
from pco.runs.folder import find, find_round
from pco.stage import Stage

FOLDER = "evaluations"  # in the folder of all runs


class _Evaluated(Exception):
    """The start is through, and no round is wanted."""


def settings(config: Path | None, policies: list[str], runs_dir: Path, overrides: list[str] | None) -> RunConfig:
    """The config whose settings evaluate policies: a file's, or else that of the run which the first is named after.

    Raises BadInput when no file is given and the first policy is of no run.
    """
    if config is not None:
        return load(config, overrides)
    if not _is_of_a_run(policies[0]):
        raise BadInput(f"config: none given, and {policies[0]} is not RUN:ROUND, whose config would do.")
    return find(policies[0].rpartition(":")[0], runs_dir, overrides)


def plans(
    settings: RunConfig, policies: list[str], *, prompts: Path | None, out: Path, runs_dir: Path
) -> dict[str, RunConfig]:
    """For each policy, by a short name, the config under which it is evaluated.

    Raises BadInput for a policy that is not there, or is named twice.
    """
    names = short_names(policies)
    made = [planned(settings, model_of(name, runs_dir), prompts, out) for name in policies]
    _check_distinct(policies, [str(plan.folder) for plan in made])
    return dict(zip(names, made, strict=True))


def short_names(policies: list[str]) -> list[str]:
    """The last part of each one's path, where that tells them apart; raises BadInput for one that is named twice."""
    _check_distinct(policies, policies)
    short = [Path(name).name for name in policies]
    return short if len(set(short)) == len(short) else policies


def _check_distinct(policies: list[str], found: list[str]) -> None:
    if len(set(found)) < len(found):
        raise BadInput(f"policies: {', '.join(policies)} names one twice, and it would be compared with itself.")


def _is_of_a_run(name: str) -> bool:
    return ":" in name and not store.exists(Path(name))


def model_of(name: str, runs_dir: Path) -> str:
    """The folder or hub id of a policy: `RUN:ROUND` stands for the policy that a round trained, 0 for the starting one.

    Raises BadInput when the run is not there, or has no such policy.
    """
    if not _is_of_a_run(name):
        return name
    config, number = find_round(name, runs_dir)
    if not number:
        prepared = store.read_manifest(Stage("prepare", 0, config).folder)
        return prepared.outputs["policy_folder"] if prepared else config.policy.model
    folder = Stage("train", number, config).model_folder
    if retention.was_removed(folder) and not folder.is_dir():
        raise BadInput(f"{name}: that policy was removed to save room (`keep_last`).")
    if not folder.is_dir():
        raise BadInput(f"{name}: no policy of that round in {config.folder}. `pco status` shows what is done.")
    return str(folder)


def planned(settings: RunConfig, model: str, prompts: Path | None, out: Path) -> RunConfig:
    """The config under which a policy is evaluated: that of a run, with another policy and other held-out prompts.

    Its folder is named after all that decides the result, so that another result never meets it.
    """
    raw = settings.model_dump(mode="json")
    for section in ("pair", "train", "gate", "rounds", "keep_last", "keep_best"):  # decide nothing here
        del raw[section]
    # Nor does how pairs are replayed; but what is trained on is named, since no prompt of it may be evaluated on.
    raw["replay"] = {"rounds": int(settings.prompts.preferences is not None)}
    raw["generate"]["n"] = Generate().n
    if model != settings.policy.model:
        raw["policy"] |= {"model": model, "revision": None}
    if prompts is not None:
        raw["prompts"] |= {"heldout": str(prompts), "heldout_limit": None}
    config = parse({**raw, "runs_dir": str(out)}, source="pco evaluate")
    decides = [config.policy.model, config.prompts.model_dump(mode="json"), Stage("evaluate", 0, config, {}).settings]
    slug = re.sub(r"[^A-Za-z0-9]+", "-", Path(model).name).strip("-")[:60]
    return config.model_copy(update={"run": f"{slug or 'policy'}-{store.digest({'of': decides})[:8]}"})


def walk(config: RunConfig, do: Callable[[Stage], store.Manifest]) -> Path:
    """Hand the stages that evaluate the policy of a config to `do`, which makes sure that each is finished; returns the
    evaluation's folder.
    """
    folder = Path()

    def of_the_start(stage: Stage) -> store.Manifest:
        nonlocal folder
        if stage.round:
            raise _Evaluated
        folder = stage.folder  # of the last stage of the start, which is the evaluation
        return do(stage)

    with contextlib.suppress(_Evaluated):
        rounds.walk(config, of_the_start)
    return folder
