"""From a reward's config to the reward. A heavy library is imported only for a reward that needs it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from data import files
from data.errors import BadInput
from pco import installed
from pco.config.reward import (
    EnsembleReward,
    ExactAnswerReward,
    JsonSchemaReward,
    JudgeReward,
    LengthReward,
    ModelReward,
    PythonReward,
    RegexReward,
    RepetitionReward,
    RewardConfig,
    compares_with_reference,
    parts,
    settings,
)
from pco.models import user_code
from pco.rewards import content, ensemble, functions, llm_judge, model, programs
from pco.rewards.scores import Counts, Reward, Scorer, plain


def load(config: RewardConfig, folder: Path | None = None) -> Reward:
    """The reward that the config describes. A model is loaded into memory. A judge keeps its replies in `folder`.

    Raises BadInput when something that it needs is missing or cannot work.
    """
    counts: Counts = defaultdict(float)
    return Reward(config, digest(config), _scorer(config, folder, counts), counts)


def digest(config: RewardConfig) -> str:
    """What names a reward: a hash of its settings and of the files that it is made of. No model is loaded.

    Raises BadInput when something that it needs is missing.
    """
    hashes: dict[str, str] = {}
    for name, part in content.named(config).items():
        file_digest = content.loaded_digest(part)
        if file_digest is not None:
            hashes[name] = file_digest
    return files.digest({"reward": settings(config), "files": hashes} if hashes else settings(config))


def _scorer(config: RewardConfig, folder: Path | None, counts: Counts) -> Scorer:
    match config:
        case RepetitionReward():
            return plain(lambda row: programs.repetition(row, config))
        case LengthReward():
            return plain(lambda row: programs.length(row, config))
        case RegexReward():
            return plain(lambda row: programs.regex(row, config))
        case JsonSchemaReward():
            return plain(programs.json_schema(config))
        case ExactAnswerReward():
            return plain(lambda row: programs.exact_answer(row, config))
        case PythonReward():
            return functions.scorer(config)
        case ModelReward():
            return model.scorer(config)
        case JudgeReward():
            return llm_judge.scorer(config, folder, counts)
        case EnsembleReward():
            members = [_scorer(member.reward, folder, counts) for member in config.members]
            return ensemble.scorer(config, members)


def check(config: RewardConfig, prompts: Mapping[str, Sequence[Mapping[str, object]]]) -> None:
    """Refuse a reward that cannot work, without loading weights. `prompts` are the rows of each prompts file by name.

    Raises BadInput.
    """
    for part in parts(config):
        match part:
            case JsonSchemaReward():
                programs.schema(part)
            case PythonReward() if not installed.is_apart():  # or it may need what only stages have
                user_code.load(functions.named(part))
            case ModelReward():
                model.check(part)
            case JudgeReward():
                llm_judge.check(part)
    if compares_with_reference(config):
        _check_references(prompts)


def _check_references(prompts: Mapping[str, Sequence[Mapping[str, object]]]) -> None:
    for where, rows in prompts.items():
        for row in rows:
            if row["reference"] is None:
                raise BadInput(
                    f"{where}: prompt {row['source_id'] or row['prompt_id']} has no `reference`, and the reward "
                    "compares with it. Put the right answer under `reference` in every line."
                )


def reads_prompts(config: RewardConfig) -> bool:
    """Whether a reward needs the prompts as they are in the user's files, or their references."""
    return any(isinstance(part, ExactAnswerReward | PythonReward | ModelReward | JudgeReward) for part in parts(config))


def asks_a_judge(config: RewardConfig) -> bool:
    """Whether a reward asks a judge: replies are kept, and requests counted, by one process."""
    return any(isinstance(part, JudgeReward) for part in parts(config))
