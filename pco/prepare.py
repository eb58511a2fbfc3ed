"""Stage `prepare`: check everything, then freeze the prompts and name the starting policy by its digest."""

from data import schemas, store
from pco import checks
from pco.stage import Stage


def run(stage: Stage) -> store.Manifest:
    """Write the `prompts` table; `outputs` name the starting policy's folder and digest."""
    started = stage.launched()
    inputs = checks.check(stage.config)
    splits = {"train": inputs.train, "heldout": inputs.heldout, "text": inputs.heldout_text}
    rows = [{"split": split, **row} for split, group in splits.items() for row in group]
    store.write_part(stage.folder, "prompts", 0, schemas.build("prompts", rows), stage.fingerprint)
    return stage.finish(
        unit="prompts and texts",
        rows_in=len(rows),
        rows_out=len(rows),
        dropped={},
        started=started,
        outputs={"policy": store.folder_digest(inputs.model), "policy_folder": str(inputs.model)},
    )
