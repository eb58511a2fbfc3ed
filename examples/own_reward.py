"""A reward of your own: completions of about twenty words, which do not shout.

    reward: {kind: python, function: "own_reward:brevity", folder: examples}

A candidate is a mapping: `prompt`, `completion`, `token_ids`, `reference` and the other columns of the table
`candidates`. Higher is better. Let a number depend on its own candidate alone: they come in shards.
"""

WORDS = 20


def brevity(candidates):
    return [_reward(candidate["completion"]) for candidate in candidates]


def _reward(completion):
    words = completion.split()
    shouted = sum(word.isupper() and len(word) > 1 for word in words)
    return -abs(len(words) - WORDS) / WORDS - shouted
