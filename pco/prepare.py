"""Stage `prepare`: check everything, then freeze the prompts and name the starting policy by its digest."""

from pathlib import Path
from typing import Any

from data import schemas, store
from data.errors import BadInput
from pco import checks
from pco.config import RunConfig
from pco.rendering import load_tokenizer, render
from pco.stage import Artifact, Stage


def planned(config: RunConfig) -> Stage:
    """The stage for a config; its inputs are the user's files, by content.

    A file that is gone since it was frozen into the run counts as unchanged, so that a run may be moved without it.

    Raises BadInput when one of them cannot be read.
    """
    names = ("train", "heldout", "heldout_text", "feedback")
    paths = {name: Path(path) for name in names if (path := getattr(config.prompts, name)) is not None}
    frozen = store.read_manifest(Stage("prepare", 0, config, {}).folder)
    recorded = frozen.inputs if frozen else {}
    inputs = {name: Artifact(path, _digest(name, path, recorded.get(name))) for name, path in paths.items()}
    return Stage("prepare", 0, config, inputs)


def _digest(name: str, path: Path, recorded: str | None) -> str:
    try:
        return store.file_digest(path)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and recorded is not None:
            return recorded
        raise BadInput(
            f"{path}: could not be read ({error.strerror}). Name a JSONL or Parquet file as `prompts.{name}`."
        ) from error


def run(stage: Stage) -> store.Manifest:
    """Write the tables `prompts` and, if there is any, `feedback`; `outputs` name the starting policy."""
    started = stage.launched()
    inputs = checks.check(stage.config)
    splits = {"train": inputs.train, "heldout": inputs.heldout, "text": inputs.heldout_text}
    rows = [{"split": split, **row} for split, group in splits.items() for row in group]
    store.write_part(stage.folder, "prompts", 0, schemas.build("prompts", rows), stage.fingerprint)
    if inputs.feedback:
        feedback = schemas.build("feedback", _with_tokens(inputs, stage.config))
        store.write_part(stage.folder, "feedback", 0, feedback, stage.fingerprint)
    count = len(rows) + len(inputs.feedback)
    return stage.finish(
        unit="prompts, texts and pieces of feedback" if inputs.feedback else "prompts and texts",
        rows_in=count,
        rows_out=count,
        dropped={},
        started=started,
        outputs={"policy": store.folder_digest(inputs.model), "policy_folder": str(inputs.model)},
    )


def _with_tokens(inputs: checks.Inputs, config: RunConfig) -> list[dict[str, Any]]:
    """Feedback as the policy would have read and written it, the end of text included."""
    tokenizer = load_tokenizer(inputs.model)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    rows = []
    for row in inputs.feedback:
        rendered = render(tokenizer, row["prompt"], config.policy)
        token_ids = tokenizer(row["completion"], add_special_tokens=False)["input_ids"] + end
        tokens = {"prompt_token_ids": rendered.token_ids, "token_ids": token_ids}
        rows.append({**row, "prompt": rendered.text, **tokens})
    return rows
