"""A loss of your own: the chosen completion shall be likelier than the rejected one by a margin, token for token.

    train:
      loss: {kind: python, module: own_loss, function: hinge, folder: examples}

`pairs` holds tensors with an entry for each pair: the log-probabilities `chosen` and `rejected` of whole completions
under the policy, and their token counts. With `reference: previous` or `start` in the config also `ref_chosen` and
`ref_rejected`. Return a loss for each pair. Gradients flow through `chosen` and `rejected`.
"""

import torch

MARGIN = 0.5  # nats for each token


def hinge(pairs):
    chosen = pairs.chosen / pairs.chosen_tokens
    rejected = pairs.rejected / pairs.rejected_tokens
    return torch.relu(MARGIN - (chosen - rejected))
