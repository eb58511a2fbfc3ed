"""The user's preferences as the reward model reads them: checked, split by prompt, rendered."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from data.errors import BadInput
from data.importing import is_heldout
from data.prompts import asked
from data.readers import prompt_key, read_preferences
from data.rows import RewardPairRow, UserPreference
from pco.config.reward import ModelReward
from pco.config.reward_training import RewardTraining
from pco.models import hub, weights
from pco.models.protocols import ModelConfig, Tokenizer
from pco.models.rendering import load_tokenizer
from pco.rewards import model

TRAIN, HELDOUT = "train", "heldout"


@dataclass(frozen=True)
class Inputs:
    """The checked inputs of a reward training."""

    model: Path
    pairs: list[RewardPairRow]
    too_long: int

    def of(self, split: str) -> list[RewardPairRow]:
        """The pairs of one side."""
        return [row for row in self.pairs if row["split"] == split]

    def summary(self) -> str:
        """One line for people."""
        sides = {"to train on": self.of(TRAIN), "held out": self.of(HELDOUT)}
        counts = [f"{len(rows):,} pairs of {len(prompts(rows)):,} prompts {what}" for what, rows in sides.items()]
        return f"{', '.join(counts)}, {self.too_long:,} too long; model {self.model}"


def prompts(rows: Iterable[RewardPairRow | UserPreference]) -> set[bytes]:
    """The different prompts, case and white space aside."""
    return {prompt_key(asked(row)) for row in rows}


def check(config: RewardTraining, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Inputs:
    """Read and check everything, and render the texts. Writes nothing.

    `on_progress` gets the number of rendered pairs and of all pairs.

    Raises BadInput for the first fault.
    """
    folder = hub.find_model(config.model, config.revision, key="model")
    settings = _checked_settings(folder)
    weights.check_not_quantised(folder, "model")
    tokenizer = load_tokenizer(folder)
    weights.check_embedding(folder, tokenizer, "model")
    padding(settings, tokenizer, folder)
    trained, heldout = _split(config)
    _check_margins(config, trained)
    limit = min(config.train.max_pair_tokens, model.longest_text(settings, tokenizer, ModelReward(model=str(folder))))
    reader = _Reader(tokenizer, str(folder))
    rows = [(TRAIN, row) for row in trained] + [(HELDOUT, row) for row in heldout]
    pairs = []
    for i, (split, row) in enumerate(rows):
        pair = reader.pair(split, row)
        if max(len(pair["chosen_token_ids"]), len(pair["rejected_token_ids"])) <= limit:
            pairs.append(pair)
        on_progress(i + 1, len(rows))
    inputs = Inputs(folder, pairs, len(rows) - len(pairs))
    for split in (TRAIN, HELDOUT):
        if not inputs.of(split):
            raise BadInput(
                f"{config.preferences}: every pair of the {split} side has a text of more than {limit} tokens. Raise "
                "train.max_pair_tokens, or take a model that reads longer texts."
            )
    return inputs


def _checked_settings(folder: Path) -> ModelConfig:
    from transformers import AutoConfig

    try:
        settings: ModelConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"{folder / 'config.json'}: not the config of a known model ({error}).") from error
    names = settings.architectures or []
    if any(name.endswith("ForSequenceClassification") for name in names) and settings.num_labels != 1:
        raise BadInput(
            f"{folder}: has {settings.num_labels} labels; a reward model has one. Begin with a reward model of one "
            "label, or with a model that has no classification head (`model`)."
        )
    return settings


def padding(settings: ModelConfig, tokenizer: Tokenizer, folder: Path) -> int:
    """The token that pads texts in training and, since it is saved with the model, in scoring.

    Raises BadInput when there is none.
    """
    for token in (settings.get_text_config().pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise BadInput(f"{folder}: neither config nor tokenizer names a padding or end-of-text token. Set `pad_token`.")


def _split(config: RewardTraining) -> tuple[list[UserPreference], list[UserPreference]]:
    """The pairs to train on, and the held-out pairs in order of prompts, so that texts of a prompt are together."""
    rows = _preferences(config.preferences)
    if config.heldout is not None:
        trained, heldout = rows, _preferences(config.heldout)
        _check_leakage(config, trained, heldout)
    else:
        trained, heldout = [], []
        for row in rows:
            side = heldout if is_heldout(prompt_key(asked(row)), config.heldout_share) else trained
            side.append(row)
        _check_sides(config, rows, trained, heldout)
    return trained, sorted(heldout, key=lambda row: row["prompt_id"])


def _preferences(path: str) -> list[UserPreference]:
    return read_preferences(Path(path))


def _check_leakage(config: RewardTraining, trained: list[UserPreference], heldout: list[UserPreference]) -> None:
    shared = prompts(trained) & prompts(heldout)
    if shared:
        raise BadInput(
            f"{config.heldout}: {len(shared):,} of its prompts are also in {config.preferences} (case and white space "
            "aside). A test on training prompts proves nothing: remove them from one file, or leave `heldout` out."
        )


def _check_sides(
    config: RewardTraining, rows: list[UserPreference], trained: list[UserPreference], heldout: list[UserPreference]
) -> None:
    if trained and heldout:
        return
    count = len(prompts(rows))
    if count == 1:
        advice = "Pairs of at least two prompts are needed, one to train on and one to test on."
    else:
        advice = "Change heldout_share; of a file that `pco data import` split, name the other part as `heldout`."
    missing = "held out" if trained else "left to train on"
    raise BadInput(
        f"{config.preferences}: of {count} different prompt{'s' if count > 1 else ''} none is {missing} with "
        f"heldout_share {config.heldout_share}. {advice}"
    )


def _check_margins(config: RewardTraining, trained: list[UserPreference]) -> None:
    without = sum(row["margin"] is None for row in trained)
    if config.train.margin_scale and without:
        raise BadInput(
            f"{config.preferences}: {without:,} pairs have no `margin`, and train.margin_scale is "
            f"{config.train.margin_scale:g}. Give every pair one, or set margin_scale: 0."
        )


class _Reader:
    """Turns texts into tokens. Most texts are in several pairs, so their tokens are kept."""

    def __init__(self, tokenizer: Tokenizer, folder: str) -> None:
        scored = ModelReward(model=folder)  # as a run will score with the trained model
        self._tokens = partial(model.rendered, tokenizer, config=scored)
        self._texts: dict[tuple[str, str], list[int]] = {}
        self._length = cache(lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]))

    def pair(self, split: str, row: UserPreference) -> RewardPairRow:
        """The row with the tokens of its two texts and the lengths of its completions."""
        return {
            **row,
            "split": split,
            "chosen_token_ids": self._text(row, row["chosen"]),
            "rejected_token_ids": self._text(row, row["rejected"]),
            "chosen_length": self._length(row["chosen"]),
            "rejected_length": self._length(row["rejected"]),
        }

    def _text(self, row: UserPreference, completion: str) -> list[int]:
        key = row["prompt_id"], completion
        if key not in self._texts:
            self._texts[key] = self._tokens(asked(row), completion)
        return self._texts[key]
