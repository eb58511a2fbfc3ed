"""Stage `split`: check everything, then freeze the pairs as the reward model reads them, each on its side."""

from data import files, schemas, store
from pco import progress
from pco.config.reward_training import RewardTraining
from pco.progress import Progress
from pco.reward_training import pairs
from pco.stage import Stage


def run(stage: Stage[RewardTraining]) -> store.Manifest:
    """Write the table `reward_pairs`; `outputs` name the model that training begins with."""
    started = stage.launched()
    inputs = pairs.check(stage.config, lambda done, total: progress.report(Progress(done, total, "pairs")))
    table = schemas.build("reward_pairs", inputs.pairs)
    store.write_part(stage.folder, "reward_pairs", 0, table, stage.fingerprint)
    return stage.finish(
        unit="pairs",
        rows_in=len(inputs.pairs) + inputs.too_long,
        rows_out=len(inputs.pairs),
        dropped={"longer than max_pair_tokens or the model's limit": inputs.too_long},
        started=started,
        outputs={"model": files.folder_digest(inputs.model), "model_folder": str(inputs.model)},
    )
