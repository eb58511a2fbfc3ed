"""Stage `prepare`: check everything, then freeze the prompts and name the starting policy by its digest."""

from typing import Any

from data import schemas, store
from pco import doctor
from pco.config.run import RunConfig
from pco.doctor import checks
from pco.models.rendering import load_tokenizer, render, written
from pco.stage import Stage


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
