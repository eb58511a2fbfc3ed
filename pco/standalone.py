"""Policies evaluated outside of a run: each as the start of a run of its own, with all that its stages promise."""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path

from data import store
from data.errors import BadInput
from pco import launcher, policy, retention, rounds
from pco.config import Generate, RunConfig, parse
from pco.progress import Progress
from pco.rundir import find_round, opened
from pco.stage import Stage, round_folder


class _Evaluated(Exception):
    """The start is through, and no round is wanted."""


def model_of(name: str, runs_dir: Path) -> str:
    """The folder or hub id of a policy: `RUN:ROUND` stands for the policy that a round trained, 0 for the starting one.

    Raises BadInput when the run is not there, or has no such policy.
    """
    if store.exists(Path(name)) or ":" not in name:
        return name
    config, number = find_round(name, runs_dir)
    if not number:
        prepared = store.read_manifest(Stage("prepare", 0, config, {}).folder)
        return str(policy.starting(prepared).folder) if prepared else config.policy.model
    folder = round_folder(config, number) / "policy"
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
    for section in ("pair", "replay", "train", "gate", "rounds", "keep_last", "keep_best"):  # decide nothing here
        del raw[section]
    raw["generate"]["n"] = Generate().n
    if model != settings.policy.model:
        raw["policy"] |= {"model": model, "revision": None}
    if prompts is not None:
        raw["prompts"] |= {"heldout": str(prompts), "heldout_limit": None}
    config = parse({**raw, "runs_dir": str(out)}, source="pco evaluate")
    decides = [config.policy.model, config.prompts.model_dump(mode="json"), Stage("evaluate", 0, config, {}).settings]
    slug = re.sub(r"[^A-Za-z0-9]+", "-", Path(model).name).strip("-")[:60]
    return config.model_copy(update={"run": f"{slug or 'policy'}-{store.digest({'of': decides})[:8]}"})


def run(config: RunConfig, on_progress: Callable[[Stage, Progress], None]) -> Path:
    """Evaluate the policy of a config, or find it done; returns the evaluation's folder."""
    folder = Path()

    def do(stage: Stage) -> store.Manifest:
        nonlocal folder
        if stage.round:
            raise _Evaluated
        folder = stage.folder  # of the last stage of the start, which is the evaluation
        return launcher.run(stage, on_progress=lambda progress: on_progress(stage, progress))

    with opened(config), contextlib.suppress(_Evaluated):
        rounds.walk(config, do)
    return folder
