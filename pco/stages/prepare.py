"""Stage `prepare`: check everything, then freeze the prompts and name the starting policy by its digest."""

from collections.abc import Mapping, Sequence
from datetime import date

from data import files, schemas, store
from data.prompts import asked
from data.rows import FeedbackRow, PreferenceRow
from pco import doctor
from pco.config.reward import ModelReward
from pco.config.run import Policy
from pco.doctor import conversations, reading
from pco.doctor.inputs import Inputs
from pco.models.rendering import render, written
from pco.rewards import content, model
from pco.rounds import TEMPLATE_DATE, dated
from pco.stage import Stage


def run(stage: Stage) -> store.Manifest:
    """Write the table `prompts` and, where the config names such files, `preferences` and `feedback`.

    `outputs` name the starting policy.
    """
    started = stage.launched()
    inputs, warnings = doctor.check(stage.config)
    for warning in warnings:
        print(f"warning: {warning.name}: {warning.message}.", flush=True)
    for line in inputs.told():
        print(f"{line}.", flush=True)
    print(f"{doctor.power(len(inputs.heldout))}.", flush=True)
    dates = _dates(inputs, started)
    splits = {"train": inputs.train, "heldout": inputs.heldout, "text": inputs.heldout_text}
    rows: list[dict[str, object]] = []
    for split, split_rows in splits.items():
        rows += [{"split": split, **row} for row in split_rows]
    store.write_part(stage.folder, "prompts", 0, schemas.build("prompts", rows), stage.fingerprint)
    count = len(rows)
    rendering = dated(stage.config, dates).policy
    user_rows: dict[str, Sequence[Mapping[str, object]]] = {
        "preferences": _preferences(inputs, stage, rendering),
        "feedback": _feedback(inputs, rendering),
    }
    for table, more in user_rows.items():
        if more:
            store.write_part(stage.folder, table, 0, schemas.build(table, more), stage.fingerprint)
        count += len(more)
    dropped = reading.dropped(inputs.sources)
    if inputs.excluded:
        dropped["excluded"] = inputs.excluded
    return stage.finish(
        unit="prompts and texts" if count == len(rows) else "prompts, texts and pieces of feedback",
        rows_in=count + sum(dropped.values()),
        rows_out=count,
        dropped=dropped,
        started=started,
        outputs={**_starting_policy(inputs, stage), **dates, **reading.recorded(inputs.sources, stage)},
        metrics={f"nan_references_{name}": many for name, many in inputs.nan_references.items()},
    )


def _dates(inputs: Inputs, started: float) -> dict[str, str]:
    """The date of the run's start, for each chat template that writes today's, as `rounds.dated` reads them."""
    config, today = inputs.config, date.fromtimestamp(started).isoformat()
    second = config.evaluate.second_reward
    models = content.named(config.reward) | (content.named(second, "second_reward") if second else {})
    names = ["policy"] if conversations.is_dated(inputs) else []
    names += [name for name, part in models.items() if isinstance(part, ModelReward) and model.is_dated(part)]
    if names:
        print(f"the chat templates of {', '.join(names)} write {today}, the date of this start, in all rounds.")
    return {f"{name}{TEMPLATE_DATE}": today for name in names}


def _starting_policy(inputs: Inputs, stage: Stage) -> dict[str, str]:
    """The starting policy's digest and folder; with those of adapter and base where it is merged now, into the run."""
    folder = inputs.merged_into(stage.model_folder)
    named = {"policy": files.folder_digest(folder), "policy_folder": str(folder)}
    if inputs.found.adapter is None:
        return named
    print(f"merged the adapter {inputs.found.adapter} into {inputs.model}.", flush=True)
    digests = {"adapter": files.folder_digest(inputs.found.adapter), "base": files.folder_digest(inputs.model)}
    return {**named, "policy_folder": folder.name, **digests}


def _preferences(inputs: Inputs, stage: Stage, rendering: Policy) -> list[PreferenceRow]:
    """Seed preferences as pairs, as if the policy had sampled them. Their places in the file number the samples."""
    tokenizer = inputs.tokenizer
    digests = [file.fingerprint for name, file in stage.inputs.items() if name.partition(".")[0] == "preferences"]
    made_by = digests[0] if len(digests) == 1 else files.digest(digests)
    rows: list[PreferenceRow] = []
    for i, row in inputs.numbered_preferences:
        rendered = render(tokenizer, asked(row), rendering)
        rows.append(
            {
                "prompt_id": row["prompt_id"],
                "source_prompt": row["prompt"],
                "prompt": rendered.text,
                "chosen": row["chosen"],
                "rejected": row["rejected"],
                "prompt_token_ids": rendered.token_ids,
                "chosen_token_ids": written(tokenizer, row["chosen"]),
                "rejected_token_ids": written(tokenizer, row["rejected"]),
                "chosen_sample": 2 * i,
                "rejected_sample": 2 * i + 1,
                "chosen_reward": None,
                "rejected_reward": None,
                "policy": made_by,
                "messages": row["messages"],
            }
        )
    return rows


def _feedback(inputs: Inputs, rendering: Policy) -> list[FeedbackRow]:
    tokenizer = inputs.tokenizer
    rows: list[FeedbackRow] = []
    for row in inputs.feedback:
        rendered = render(tokenizer, asked(row), rendering)
        tokens = written(tokenizer, row["completion"])
        rows.append({**row, "prompt": rendered.text, "prompt_token_ids": rendered.token_ids, "token_ids": tokens})
    return rows
