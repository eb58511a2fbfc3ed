"""Requests to the engine for a prompt, and a completion as a row of `candidates`."""

from data.prompts import asked
from data.rows import CandidateRow, PromptRow
from pco.config.run import RunConfig
from pco.models.engine import Completion, Request
from pco.models.protocols import Tokenizer
from pco.models.rendering import render
from pco.seeds import seed_of

GREEDY, SAMPLED = "greedy", "sampled"  # the modes of a completion


def sampled(row: PromptRow, tokenizer: Tokenizer, config: RunConfig, salt: object, n: int) -> list[Request]:
    """N sampled completions of a prompt, each with a seed of its own (one seed for all would give n equal ones)."""
    rendered = render(tokenizer, asked(row), config.policy)
    prompt_id = row["prompt_id"]
    return [Request(prompt_id, i, rendered, seed_of(config.seed, salt, prompt_id, i)) for i in range(n)]


def candidate_row(completion: Completion, policy_digest: str) -> CandidateRow:
    """A completion as a row of `candidates`; `policy_digest` is that of the policy that wrote it."""
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
