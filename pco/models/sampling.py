"""What is asked of the engine for a prompt, and what it answers as a row of `candidates`."""

from typing import Any

from pco.config.run import RunConfig
from pco.models.engine import Completion, Request
from pco.models.rendering import render
from pco.seeds import seed_of

GREEDY, SAMPLED = "greedy", "sampled"  # the modes of a completion


def sampled(row: dict[str, Any], tokenizer: Any, config: RunConfig, salt: object, n: int) -> list[Request]:
    """N sampled completions of a prompt, each with a seed of its own (one seed for all would give n equal ones)."""
    rendered = render(tokenizer, row["prompt"], config.policy)
    ids = row["prompt_id"]
    return [Request(ids, i, rendered, seed_of(config.seed, salt, ids, i)) for i in range(n)]


def candidate_row(completion: Completion, policy_digest: str) -> dict[str, object]:
    """A completion as a row of `candidates`; `policy_digest` stands for the policy that wrote it."""
    request = completion.request
    return {
        "prompt_id": request.prompt_id,
        "mode": GREEDY if request.greedy else SAMPLED,
        "sample": request.sample,
        "prompt": request.prompt.text,
        "prompt_token_ids": request.prompt.token_ids,
        "completion": completion.text,
        "token_ids": completion.token_ids,
        "logprob": completion.logprob,
        "finish_reason": completion.finish_reason,
        "seed": request.seed,
        "policy": policy_digest,
    }
