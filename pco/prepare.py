"""Stage `prepare`: check everything, then freeze the prompts and name the starting policy by its digest."""

from pathlib import Path
from typing import Any

from data import schemas, store
from data.errors import BadInput
from pco import checks, doctor
from pco.config import RunConfig
from pco.rendering import load_tokenizer, render, written
from pco.stage import Artifact, Stage


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
        name: Artifact(path, digest(path, recorded.get(name), key=f"prompts.{name}")) for name, path in paths.items()
    }
    return Stage("prepare", 0, config, inputs)


def digest(path: Path, recorded: str | None, *, key: str) -> str:
    """Hash of a user's file, or what was recorded of it if it is gone; `key` is the setting that names it.

    Raises BadInput when it cannot be read.
    """
    try:
        return store.file_digest(path)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and recorded is not None:
            return recorded
        raise BadInput(
            f"{path}: could not be read ({error.strerror}). Name a JSONL or Parquet file as `{key}`."
        ) from error


def run(stage: Stage) -> store.Manifest:
    """Write the table `prompts` and those of what there is beside: `preferences`, `feedback`.

    `outputs` name the starting policy.
    """
    started = stage.launched()
    inputs, warnings = doctor.check(stage.config)
    for warning in warnings:
        print(f"warning: {warning.name}: {warning.told}.", flush=True)
    print(f"{doctor.power(len(inputs.heldout))}.", flush=True)
    splits = {"train": inputs.train, "heldout": inputs.heldout, "text": inputs.heldout_text}
    rows = [{"split": split, **row} for split, group in splits.items() for row in group]
    store.write_part(stage.folder, "prompts", 0, schemas.build("prompts", rows), stage.fingerprint)
    count = len(rows)
    for table, made in (("preferences", _preferences(inputs, stage)), ("feedback", _feedback(inputs, stage.config))):
        if made:
            store.write_part(stage.folder, table, 0, schemas.build(table, made), stage.fingerprint)
        count += len(made)
    return stage.finish(
        unit="prompts and texts" if count == len(rows) else "prompts, texts and pieces of feedback",
        rows_in=count,
        rows_out=count,
        dropped={},
        started=started,
        outputs={"policy": store.folder_digest(inputs.model), "policy_folder": str(inputs.model)},
    )


def _preferences(inputs: checks.Inputs, stage: Stage) -> list[dict[str, Any]]:
    """Seed preferences as pairs that the policy might have sampled; their place in the file stands for the samples."""
    tokenizer = load_tokenizer(inputs.model)
    rows = []
    for i, row in enumerate(inputs.preferences):
        rendered = render(tokenizer, row["prompt"], stage.config.policy)
        rows.append(
            {
                **row,
                "source_prompt": row["prompt"],
                "prompt": rendered.text,
                "prompt_token_ids": rendered.token_ids,
                "chosen_token_ids": written(tokenizer, row["chosen"]),
                "rejected_token_ids": written(tokenizer, row["rejected"]),
                "chosen_sample": 2 * i,
                "rejected_sample": 2 * i + 1,
                "policy": stage.inputs["preferences"].fingerprint,
            }
        )
    return rows


def _feedback(inputs: checks.Inputs, config: RunConfig) -> list[dict[str, Any]]:
    tokenizer = load_tokenizer(inputs.model)
    rows = []
    for row in inputs.feedback:
        rendered = render(tokenizer, row["prompt"], config.policy)
        tokens = {"prompt_token_ids": rendered.token_ids, "token_ids": written(tokenizer, row["completion"])}
        rows.append({**row, "prompt": rendered.text, **tokens})
    return rows
