"""Policies evaluated outside of a run: each as the start of its own run, with the same stages."""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path

from data import files, store
from data.errors import BadInput
from pco import rounds
from pco.config.run import Generate, RunConfig, load, parse
from pco.config.section import settings_of
from pco.runs import retention
from pco.runs.folder import find, find_round
from pco.stage import Stage

FOLDER = "evaluations"  # in the folder of all runs


class _Stop(Exception):
    """Ends a walk after the start, before the first round."""


def settings(config: Path | None, policies: list[str], runs_dir: Path, overrides: list[str] | None) -> RunConfig:
    """The config that evaluates policies: that of a file, or else that of the run which the first policy names.

    Raises BadInput when there is no file and the first policy is not one of a run.
    """
    if config is not None:
        return load(config, overrides)
    if not _is_of_a_run(policies[0]):
        raise BadInput(f"config: there is none, and {policies[0]} is not RUN:ROUND, whose config could be used.")
    return rounds.as_begun(find(policies[0].rpartition(":")[0], runs_dir, overrides))


def plans(
    settings: RunConfig, policies: list[str], *, prompts: Path | None, out: Path, runs_dir: Path
) -> dict[str, RunConfig]:
    """The config that evaluates each policy, by the policy's short name.

    Raises BadInput for a policy that is not there, or is named twice.
    """
    names = short_names(policies)
    configs = [planned(settings, model_of(name, runs_dir), prompts, out) for name in policies]
    _check_distinct(policies, [str(config.folder) for config in configs])
    return dict(zip(names, configs, strict=True))


def short_names(policies: list[str]) -> list[str]:
    """The last part of each path, if these are distinct; raises BadInput for a policy that is named twice."""
    _check_distinct(policies, policies)
    short = [Path(name).name for name in policies]
    return short if len(set(short)) == len(short) else policies


def _check_distinct(policies: list[str], identities: list[str]) -> None:
    if len(set(identities)) < len(identities):
        raise BadInput(f"policies: {', '.join(policies)} names one twice, and it would be compared with itself.")


def _is_of_a_run(name: str) -> bool:
    return ":" in name and not files.exists(Path(name))


def model_of(name: str, runs_dir: Path) -> str:
    """The folder or hub id of a policy: `RUN:ROUND` is the policy that a round trained; round 0 is the starting one.

    Raises BadInput when the run is not there, or has no such policy.
    """
    if not _is_of_a_run(name):
        return name
    config, number = find_round(name, runs_dir)
    if not number:
        prepare = Stage("prepare", 0, config)
        prepared = store.read_manifest(prepare.folder)
        return str(prepare.starting_policy(prepared).folder) if prepared else config.policy.model
    folder = Stage("train", number, config).model_folder
    if retention.was_removed(folder) and not folder.is_dir():
        raise BadInput(f"{name}: that policy was removed to save room (`keep_last`).")
    if not folder.is_dir():
        raise BadInput(f"{name}: no policy of that round in {config.folder}. `pco status` shows what is done.")
    return str(folder)


def planned(settings: RunConfig, model: str, prompts: Path | None, out: Path) -> RunConfig:
    """The config that evaluates a policy: that of a run, with another policy and other held-out prompts.

    The name of its folder holds a digest of everything that decides the result, so that results never share a folder.
    """
    raw = settings.model_dump(mode="json")
    for section in ("pair", "train", "gate", "rounds", "keep_last", "keep_best"):  # without effect on an evaluation
        del raw[section]
    # So is replay. But the seed preferences stay named, since none of their prompts may be evaluated on.
    raw["replay"] = {"rounds": int(settings.prompts.preferences is not None)}
    raw["train"] = {"precision": "bf16"}  # the same on every machine, or an evaluation could not be resumed elsewhere
    raw["generate"]["n"] = Generate().n
    raw["prompts"]["test"] = None  # only a run looks at its test set
    if model != settings.policy.model:
        raw["policy"] |= {"model": model, "revision": None}
    if prompts is not None:
        raw["prompts"] |= {"heldout": str(prompts), "heldout_limit": None}
    config = parse({**raw, "runs_dir": str(out)}, source="pco evaluate", recorded=raw)
    named = {name: value for name, value in settings_of(config.prompts).items() if name != "test"}
    identity = [config.policy.model, named, Stage("evaluate", 0, config, {}).settings]
    slug = re.sub(r"[^A-Za-z0-9]+", "-", Path(model).name).strip("-")[:60]
    return config.model_copy(update={"run": f"{slug or 'policy'}-{files.digest({'of': identity})[:8]}"})


def walk(config: RunConfig, do: Callable[[Stage], store.Manifest]) -> Path:
    """Pass the stages that evaluate a config's policy to `do`, which makes sure that each is finished.

    Returns the evaluation's folder.
    """
    folder = Path()

    def visit(stage: Stage) -> store.Manifest:
        nonlocal folder
        if stage.round:
            raise _Stop
        folder = stage.folder  # of the last stage of the start, which is the evaluation
        return do(stage)

    with contextlib.suppress(_Stop):
        rounds.walk(config, visit)
    return folder
