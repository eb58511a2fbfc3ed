"""Losses over completions: Pairwise Cringe and its parts, preference losses, unlikelihood, SFT, and their fused forms.

Conventions shared by every function here:

- Logits and hidden states are already shifted: position t predicts `labels[:, t]`.
- A label of -100 is ignored everywhere: in sums, in counts, in sampling, and its logits may hold anything.
- Results are per completion or per pair, unreduced. Those of Cringe, unlikelihood and SFT are sums over tokens in
  nats, which the trainer divides by the completion tokens of the whole optimizer step; DPO, IPO and SimPO are one
  number a pair, which it divides by the step's pairs.
- Whatever the input's dtype, arithmetic is float32 (float64 stays float64).
- Bad arguments raise `ValueError`.

`docs/losses.md` holds the equations and what each knob does.
"""

from pco.losses import preference
from pco.losses.binary import BinaryCringe, binary_cringe, fused_binary_cringe
from pco.losses.checks import IGNORE
from pco.losses.contrast import sample_contrast
from pco.losses.fused import fused_logps
from pco.losses.likelihood import completion_logps, sft
from pco.losses.pairwise import PairwiseCringe, cringe, fused_pairwise_cringe, gate, pairwise_cringe
from pco.losses.preference import *  # noqa: F403  (its `__all__` says what is public: a new loss is named in one place)
from pco.losses.unlikelihood import Unlikelihood, fused_unlikelihood, unlikelihood

__all__ = [
    "IGNORE",
    "BinaryCringe",
    "PairwiseCringe",
    "Unlikelihood",
    "binary_cringe",
    "completion_logps",
    "cringe",
    "fused_binary_cringe",
    "fused_logps",
    "fused_pairwise_cringe",
    "fused_unlikelihood",
    "gate",
    "pairwise_cringe",
    "sample_contrast",
    "sft",
    "unlikelihood",
]
__all__ += preference.__all__
