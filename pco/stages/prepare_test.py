"""Stage `prepare_test`: check the test prompts, then freeze them. They lie apart; nothing reads them before the end."""

from pathlib import Path
from typing import Any

from data import schemas, store
from data.rows import FeedbackRow, PreferenceRow, PromptRow
from pco.doctor import checks, reading
from pco.doctor.inputs import Inputs
from pco.stage import Stage


def run(stage: Stage) -> store.Manifest:
    """Write the table `prompts` of the split `test`.

    Raises BadInput when a prompt is also trained on or held out, does not fit, or has not what the reward needs.
    """
    started = stage.launched()
    # A test set may join a run whose own files are gone, so it is held against what was frozen of them.
    frozen = stage.inputs["prompts"].folder
    prompts: list[PromptRow] = store.read_table(frozen, "prompts").to_pylist()
    seeds: list[PreferenceRow] = _rows_if_any(frozen, "preferences")
    feedback: list[FeedbackRow] = _rows_if_any(frozen, "feedback")
    trained = [row for row in prompts if row["split"] == "train"]
    asked = [{"prompt": row["source_prompt"], "messages": row["messages"]} for row in seeds if row["source_prompt"]]
    inputs = Inputs(stage.config)
    checks.check_test(
        inputs,
        [*trained, *asked],
        [row for row in prompts if row["split"] == "heldout"],
        trained_ids={row["prompt_id"] for row in (*seeds, *feedback)},
    )
    content = schemas.build("prompts", [{"split": "test", **row} for row in inputs.test])
    store.write_part(stage.folder, "prompts", 0, content, stage.fingerprint)
    rows, dropped = len(inputs.test), reading.dropped(inputs.test_sources)
    if inputs.excluded_of_test:
        dropped["excluded"] = inputs.excluded_of_test
    return stage.finish(
        unit="test prompts",
        rows_in=rows + sum(dropped.values()),
        rows_out=rows,
        dropped=dropped,
        started=started,
        outputs=reading.recorded(inputs.test_sources, stage),
    )


def _rows_if_any(folder: Path, table: str) -> list[Any]:
    return store.read_table(folder, table).to_pylist() if store.has_table(folder, table) else []
