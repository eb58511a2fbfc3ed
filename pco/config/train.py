"""The `train` section of the config: the losses with their settings, and how DeepSpeed trains."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pco.config.section import Section, added, settings_of


class _Cringe(Section):
    alpha: float = Field(1.0, ge=0)
    """Weight of the Cringe term on rejected tokens beside the cross entropy on chosen ones."""
    k: int = Field(5, ge=1)
    """The contrast token is sampled among the k most likely tokens other than the rejected one."""


class _Preference(Section):
    sft_weight: float = added(0.0, ge=0)
    """Weight of the chosen completions' cross entropy beside the loss: its mean over their tokens beside losses of a
    pair, its sum beside `pairwise_cringe`, which is a sum over tokens itself (docs/losses.md)."""

    @property
    def reference_policy(self) -> Literal["previous", "start"] | None:
        """The policy whose log-probabilities the loss needs beside its own; None: it needs none."""
        return None


class PairwiseCringe(_Cringe, _Preference):
    """gate * (cross entropy of chosen + alpha * Cringe of rejected), with gate = sigmoid((b - margin) / tau)."""

    kind: Literal["pairwise_cringe"] = "pairwise_cringe"
    b: float = 0.0
    """Margin (nats) at which the gate is half open."""
    tau: float = Field(10.0, gt=0)
    """Temperature of the soft gate (nats): smaller is closer to a hard threshold."""
    gate: Literal["soft", "hard", "off"] = "soft"
    """`soft` as in the paper; `hard` is 1 below b, else 0; `off` trains on every pair fully (binary Cringe)."""
    detach_gate: bool = False
    """Treat the gate as a constant: cheaper, and no gradient through the margin."""
    length_normalized_margin: bool = False
    """Divide each log-probability in the margin by its completion's tokens."""


class Unlikelihood(Section):
    """Cross entropy of chosen + alpha * unlikelihood of rejected, -log(1 - p) of each token (arXiv 1908.04319)."""

    kind: Literal["unlikelihood"] = "unlikelihood"
    alpha: float = Field(1.0, ge=0)
    """Weight of the unlikelihood of rejected tokens beside the cross entropy on chosen ones."""

    @property
    def reference_policy(self) -> None:
        """It needs none."""
        return None


class SFT(Section):
    """Cross entropy on the chosen completions alone."""

    kind: Literal["sft"] = "sft"

    @property
    def reference_policy(self) -> None:
        """It needs none."""
        return None


DivideBy = Literal["pairs", "tokens"]


class _OfPairs(_Preference):
    divide_by: DivideBy = added("pairs", before="tokens")
    """What a step's summed loss is divided by: its `pairs`, as in the papers, or its completion `tokens`, as in runs
    that began before there was a choice; they keep it to their end."""


class _WithReference(_OfPairs):
    beta: float = Field(0.1, gt=0)
    """How closely the policy is held to the reference: larger is closer."""
    reference: Literal["previous", "start"] = "previous"
    """The reference policy: the one each round starts from, or the starting policy of the run."""

    @property
    def reference_policy(self) -> Literal["previous", "start"]:
        """The policy whose log-probabilities the loss needs beside its own."""
        return self.reference


class DPO(_WithReference):
    """Direct preference optimization against log-probabilities of a reference policy, read from a table."""

    kind: Literal["dpo"] = "dpo"
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Assumed share of pairs whose preference is the wrong way round."""
    length_normalized: bool = added(False)
    """Divide each completion's log-ratio by its tokens. `beta` then counts nats a token: 5 in place of 0.1, say."""


class IPO(_WithReference):
    """Identity preference optimization: DPO's margin is pulled to 1 / (2 beta) by a square."""

    kind: Literal["ipo"] = "ipo"
    length_normalized: bool = added(False)
    """Divide each completion's log-ratio by its tokens, as TRL does and, it says, the authors did for their paper.
    1 / (2 beta) is then a margin in nats a token."""


class SimPO(_OfPairs):
    """Mean log-probability a token of chosen against rejected, less a margin; no reference (arXiv 2405.14734)."""

    kind: Literal["simpo"] = "simpo"
    beta: float = Field(2.0, gt=0)
    """Scale of the mean log-probabilities."""
    gamma: float = Field(0.5, ge=0)
    """Margin asked for, after beta: the paper's gamma. Where others give gamma / beta, it is that ratio times beta."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Assumed share of pairs whose preference is the wrong way round."""


class PythonLoss(_Preference):
    """A function of your own: log-probabilities and token counts of pairs in, a loss for each pair out."""

    kind: Literal["python"] = "python"
    module: str = Field(pattern=r"^[^\W\d]\w*(\.[^\W\d]\w*)*$")
    """The module that holds the function, e.g. `my_loss`."""
    function: str = Field("loss", pattern=r"^[^\W\d]\w*$")
    """The function's name in it."""
    folder: str = "."
    """The folder in which the module is looked for first; installed modules are found, too."""
    divide_by: DivideBy = added("tokens")
    """What a step's summed loss is divided by: its completion `tokens` or its `pairs`."""
    reference: Literal["none", "previous", "start"] = "none"
    """The reference policy whose log-probabilities the function reads: the one each round starts from, the starting
    policy of the run, or none."""

    @property
    def reference_policy(self) -> Literal["previous", "start"] | None:
        """The policy whose log-probabilities the loss needs beside its own; None: it needs none."""
        return None if self.reference == "none" else self.reference


Loss = Annotated[PairwiseCringe | Unlikelihood | SFT | DPO | IPO | SimPO | PythonLoss, Field(discriminator="kind")]


def is_divided_by_pairs(loss: Loss) -> bool:
    """Whether a step's loss is the mean over its pairs, not over its completion tokens."""
    return isinstance(loss, (DPO, IPO, SimPO, PythonLoss)) and loss.divide_by == "pairs"


class Feedback(_Cringe):
    """Binary Cringe on unpaired thumbs up and down, mixed into every step beside the pairs (`prompts.feedback`)."""

    weight: float = Field(1.0, ge=0)
    """Weight of the feedback's loss against that of the pairs. Beside a mean over pairs it is a mean over the
    feedback's own tokens; else both are sums over tokens, divided by all of the step."""


class LoRA(Section):
    """Low-rank adapters; they are merged into the model when it is saved."""

    r: int = Field(16, ge=1)
    """Rank."""
    alpha: float = Field(32.0, gt=0)
    """Scale; the update is alpha / r times the product of the adapters."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapters' input."""
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    """Which modules get adapters."""


class Training(Section):
    """How DeepSpeed trains, whatever it is that learns."""

    learning_rate: float = Field(5e-5, gt=0)
    """Peak learning rate of AdamW."""
    epochs: int = Field(1, ge=1)
    """Passes over the pairs."""
    pairs_per_step: int = Field(8, ge=1)
    """Pairs per optimizer step, over all processes and micro-batches."""
    micro_batch_pairs: int = Field(8, ge=1)
    """Pairs per process that are in memory at once; changes memory and speed, not the result."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's weight decay."""
    warmup_share: float = Field(0.1, ge=0, le=1)
    """Share of the steps in which the learning rate rises evenly; the first of n has 1 / (n + 1) of the peak, not 0."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """What the learning rate does after the warm-up."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16 keeps float32 master weights and saves bf16 ones. `auto` is bf16 where the GPU or the CPU multiplies it,
    fp32 elsewhere: decided when the run begins and kept in its config.yaml."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO: what is split over processes (1 optimizer, 2 + gradients, 3 + parameters)."""
    processes: int = Field(1, ge=1)
    """Training processes: one per GPU; on CPU usually 1."""
    layout: Literal["auto", "padded", "shared"] = "auto"
    """How a pair lies in memory: two `padded` rows, each with the prompt, or one row in which both completions follow
    one `shared` prompt and do not see each other. `auto` shares prompts where the model can and that is less work."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, slower."""
    lora: LoRA | None = None
    """Train low-rank adapters instead of all weights."""
    checkpoint_steps: int = Field(50, ge=1)
    """Steps between checkpoints: what a kill in mid-training costs at most."""
    keep_checkpoints: int = Field(1, ge=1)
    """How many checkpoints to keep while training; a finished training keeps none."""
    max_pair_tokens: int = Field(2048, ge=8)
    """Pairs with a longer sequence (prompt + completion) are dropped and counted."""

    @model_validator(mode="after")
    def _step_splits_evenly(self) -> Self:
        if self.pairs_per_step % self.processes:
            raise ValueError(
                f"pairs_per_step ({self.pairs_per_step}) must be a multiple of processes ({self.processes})"
            )
        return self


# They change memory and speed, and the result by no more than rounding: after an error for want of memory a run can go
# on with others.
HOW_TRAINING_RUNS = (
    "micro_batch_pairs",
    "processes",
    "zero_stage",
    "layout",
    "fused_head",
    "gradient_checkpointing",
    "checkpoint_steps",
    "keep_checkpoints",
)


def deciding(train: Training) -> dict[str, Any]:
    """The settings that decide a training's result."""
    settings = {name: value for name, value in settings_of(train).items() if name not in HOW_TRAINING_RUNS}
    settings.pop("begin_from", None)  # the policy is an input of the stage
    if isinstance(train, Train) and isinstance(train.loss, PythonLoss):
        settings["loss"].pop("folder")  # the function's file is an input of the stage, by content
    return settings


class Train(Training):
    """Training of the policy on each round's pairs."""

    loss: Loss = PairwiseCringe()
    """The training objective on pairs."""
    begin_from: Literal["previous", "start"] = "previous"
    """The policy that a round's training begins from: that of the `previous` round, as the gate left it, or the run's
    starting policy, which each round then trains anew; `replay.rounds: all` with `replay.share: all` gives it all pairs
    so far. Either way the round's completions are sampled from the previous policy."""
    feedback: Feedback = Feedback()
    """The objective on unpaired feedback, if there is any."""
    fused_head: bool = True
    """Compute the loss in chunks of tokens without ever holding all logits; False is the plain form, for comparison."""

    @field_validator("loss", mode="before")
    @classmethod
    def _pairwise_cringe_by_default(cls, loss: object) -> object:
        return {"kind": "pairwise_cringe", **loss} if isinstance(loss, dict) else loss

    @model_validator(mode="after")
    def _reference_is_where_training_begins(self) -> Self:
        if self.begin_from == "start" and self.loss.reference_policy == "previous":
            raise ValueError(
                "begin_from: start: set loss.reference: start, too. `previous` is the policy that a round goes on "
                "from, and no training begins from it here"
            )
        return self


def as_it_was(raw: Any) -> Any:
    """The section as it stands in the config of a run, with what settings meant that were not there yet.

    Losses of a pair were divided by tokens: to divide otherwise from some round on would make rounds that do not
    compare.
    """
    loss = raw.get("loss") if isinstance(raw, dict) else None
    if not isinstance(loss, dict) or loss.get("kind") not in ("dpo", "ipo", "simpo"):
        return raw
    return {**raw, "loss": {"divide_by": "tokens", **loss}}


def absolute_loss(train: Train) -> Train:
    """The section with its path made absolute: the folder of a loss of the user's own."""
    loss = train.loss
    if not isinstance(loss, PythonLoss):
        return train
    folder = str(Path(loss.folder).expanduser().resolve())
    return train.model_copy(update={"loss": loss.model_copy(update={"folder": folder})})
