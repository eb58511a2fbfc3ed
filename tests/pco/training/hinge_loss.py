"""A loss of the user's own, for tests: a hinge on the mean log-probabilities, against a reference if there is one."""

import torch


def loss(pairs):
    chosen, rejected = pairs.chosen, pairs.rejected
    if pairs.ref_chosen is not None:
        chosen, rejected = chosen - pairs.ref_chosen, rejected - pairs.ref_rejected
    return torch.relu(1 - (chosen / pairs.chosen_tokens - rejected / pairs.rejected_tokens))
