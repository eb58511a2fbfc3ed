"""Which held-out prompts a costly reward sees where it sees a share of them."""

from collections.abc import Iterable

from pco.seeds import seed_of

_FEWEST = 4  # prompts from which an interval can be helped by a cheap metric


def judged_prompts(prompt_ids: Iterable[str], share: float, seed: int) -> set[str]:
    """A random share of the prompts, at least four if there are so many: the same for the same ids, share and seed."""
    distinct = set(prompt_ids)
    count = max(round(share * len(distinct)), _FEWEST)
    return set(sorted(distinct, key=lambda prompt_id: (seed_of("judged", seed, prompt_id), prompt_id))[:count])
