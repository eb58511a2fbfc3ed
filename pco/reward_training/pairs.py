"""The user's preferences as the reward model will read them: checked, split by prompt, rendered."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from data.errors import BadInput
from data.importing import is_heldout
from data.readers import prompt_key, read_preferences
from pco.config.reward import ModelReward
from pco.config.reward_training import RewardTraining
from pco.models import hub
from pco.models.rendering import load_tokenizer
from pco.rewards import model

Row = dict[str, Any]
TRAIN, HELDOUT = "train", "heldout"


@dataclass(frozen=True)
class Inputs:
    """The checked inputs of a reward training; `pairs` are rows of `reward_pairs`."""

    model: Path
    pairs: list[Row]
    too_long: int

    def of(self, split: str) -> list[Row]:
        """The pairs of one side."""
        return [row for row in self.pairs if row["split"] == split]

    def summary(self) -> str:
        """One line for people."""
        sides = {"to train on": self.of(TRAIN), "held out": self.of(HELDOUT)}
        told = [f"{len(rows):,} pairs of {len(prompts(rows)):,} prompts {what}" for what, rows in sides.items()]
        return f"{', '.join(told)}, {self.too_long:,} too long; model {self.model}"


def prompts(rows: Sequence[Row]) -> set[bytes]:
    """The different prompts, case and white space aside."""
    return {prompt_key(row["prompt"]) for row in rows}


def check(config: RewardTraining, told: Callable[[int, int], None] = lambda done, total: None) -> Inputs:
    """Read and check everything, and render the texts; `told` hears how many pairs of how many are. Writes nothing.

    Raises BadInput for the first fault found.
    """
    folder = hub.find_model(config.model, config.revision, key="model")
    settings = _checked_settings(folder)
    tokenizer = load_tokenizer(folder)
    padding(settings, tokenizer, folder)
    rows = _split(config)
    _check_margins(config, rows)
    limit = min(config.train.max_pair_tokens, model.longest_text(settings, tokenizer, ModelReward(model=str(folder))))
    read = _Reader(tokenizer, str(folder))
    pairs = []
    for i, row in enumerate(rows):
        rendered = read.pair(row)
        if max(len(rendered["chosen_token_ids"]), len(rendered["rejected_token_ids"])) <= limit:
            pairs.append(rendered)
        told(i + 1, len(rows))
    found = Inputs(folder, pairs, len(rows) - len(pairs))
    for split in (TRAIN, HELDOUT):
        if not found.of(split):
            raise BadInput(
                f"{config.preferences}: every pair of the {split} side has a text of more than {limit} tokens. Raise "
                "train.max_pair_tokens, or take a model that reads longer texts."
            )
    return found


def _checked_settings(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"{folder / 'config.json'}: not the config of a known model ({error}).") from error
    names = settings.architectures or []
    if any(name.endswith("ForSequenceClassification") for name in names) and settings.num_labels != 1:
        raise BadInput(
            f"{folder}: has {settings.num_labels} labels; a reward model has one. Begin with a reward model of one "
            "label, or with a model that has no classification head (`model`)."
        )
    return settings


def padding(settings: Any, tokenizer: Any, folder: Path) -> int:
    """The token that pads texts while training and, as it is saved with the model, while scoring.

    Raises BadInput when there is none.
    """
    found = (settings.get_text_config().pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id)
    for token in found:
        if token is not None:
            return int(token)
    raise BadInput(f"{folder}: neither config nor tokenizer names a padding or end-of-text token. Set `pad_token`.")


def _split(config: RewardTraining) -> list[Row]:
    """All pairs with their side; held-out ones by prompt, so that equal texts of a prompt stand together."""
    rows = read_preferences(Path(config.preferences))
    if config.heldout is not None:
        trained, heldout = rows, read_preferences(Path(config.heldout))
        _check_leakage(config, trained, heldout)
    else:
        sides: dict[bool, list[Row]] = {False: [], True: []}
        for row in rows:
            sides[is_heldout(prompt_key(row["prompt"]), config.heldout_share)].append(row)
        trained, heldout = sides[False], sides[True]
        _check_sides(config, rows, trained, heldout)
    heldout = sorted(heldout, key=lambda row: str(row["prompt_id"]))
    return [{"split": TRAIN, **row} for row in trained] + [{"split": HELDOUT, **row} for row in heldout]


def _check_leakage(config: RewardTraining, trained: list[Row], heldout: list[Row]) -> None:
    if shared := prompts(trained) & prompts(heldout):
        raise BadInput(
            f"{config.heldout}: {len(shared):,} of its prompts are also in {config.preferences} (case and white space "
            "aside). A test on training prompts proves nothing: remove them from one file, or leave `heldout` out."
        )


def _check_sides(config: RewardTraining, rows: list[Row], trained: list[Row], heldout: list[Row]) -> None:
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


def _check_margins(config: RewardTraining, rows: list[Row]) -> None:
    without = sum(row["margin"] is None for row in rows if row["split"] == TRAIN)
    if config.train.margin_scale and without:
        raise BadInput(
            f"{config.preferences}: {without:,} pairs have no `margin`, and train.margin_scale is "
            f"{config.train.margin_scale:g}. Give every pair one, or set margin_scale: 0."
        )


class _Reader:
    """Texts into tokens; most answers stand in several pairs, so each is read once."""

    def __init__(self, tokenizer: Any, folder: str) -> None:
        self._tokenizer = tokenizer
        scored = ModelReward(model=folder)  # as a run will score with the trained model
        self._text = cache(lambda prompt, completion: model.rendered(tokenizer, prompt, completion, scored))
        self._length = cache(lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]))

    def pair(self, row: Row) -> Row:
        """The row with the tokens of its two texts and the lengths of its completions."""
        tokens = {f"{side}_token_ids": self._text(row["prompt"], row[side]) for side in ("chosen", "rejected")}
        lengths = {f"{side}_length": self._length(row[side]) for side in ("chosen", "rejected")}
        return {**row, **tokens, **lengths}
