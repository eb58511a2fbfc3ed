"""Check the files of a run against its manifests."""

from collections.abc import Iterator
from pathlib import Path

from data import files, store
from data.errors import BadInput, PCOError
from pco.config.run import RunConfig
from pco.runs import retention
from pco.runs.status import points
from pco.specs import StageName
from pco.stage import Stage


def damage(config: RunConfig) -> list[str]:
    """The faults of a run's finished stages, after reading every table and policy; empty if there are none."""
    faults = []
    for number, name in points(config):
        stage = Stage(name, number, config)
        try:
            manifest = store.read_manifest(stage.folder)
        except PCOError as error:
            faults.append(str(error))
            continue
        if manifest is not None:
            faults += _part_damage(stage.folder, manifest)
            if (model := stage.own_model(manifest)) is not None:
                faults += _model_damage(model.folder, model.fingerprint, name)
    return faults


def _part_damage(folder: Path, manifest: store.Manifest) -> list[str]:
    faults = []
    for part in manifest.parts:
        try:
            store.read_part(folder, part)
        except PCOError as error:
            faults.append(str(error))
    return faults


def _model_damage(folder: Path, digest: str, maker: StageName) -> list[str]:
    if not folder.is_dir():
        if retention.was_removed(folder):
            return []
        return [f"{folder}: missing. Restore it from a copy, or make it again with `pco resume --from {maker}`."]
    if files.folder_digest(folder) != digest:
        return [f"{folder}: its files are not those that were saved. Restore them from a copy."]
    return []


def evaluation(config: RunConfig, number: int | None) -> Path:
    """The folder of a finished evaluation on the held-out prompts: a round's, or by default the last.

    Raises BadInput when there is none.
    """
    folders = [folder for _, name, folder in _with_table(config, "evaluations", number) if name == "evaluate"]
    if not folders:
        raise _nothing_with(config, "evaluations", number)
    return folders[-1]


def folders_with(config: RunConfig, table: str, number: int | None) -> list[tuple[str, Path]]:
    """The finished stage folders that hold a table, each with its place in words.

    Raises BadInput when there is none.
    """
    folders = [(f"round {at}, {name}", folder) for at, name, folder in _with_table(config, table, number)]
    if not folders:
        raise _nothing_with(config, table, number)
    return folders


def _with_table(config: RunConfig, table: str, number: int | None) -> Iterator[tuple[int, StageName, Path]]:
    for at, name in points(config):
        folder = Stage(name, at, config).folder
        manifest = store.read_manifest(folder)
        if manifest and number in {None, at} and table in {part.table for part in manifest.parts}:
            yield at, name, folder


def _nothing_with(config: RunConfig, table: str, number: int | None) -> BadInput:
    where = "" if number is None else f" in round {number}"
    return BadInput(
        f"{config.folder}: no finished stage holds a `{table}` table{where}. `pco status` shows what is done."
    )
