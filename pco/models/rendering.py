"""How a prompt becomes the tokens that the policy reads: one function for every stage."""

from dataclasses import dataclass
from pathlib import Path

from data.errors import BadInput
from pco.config.run import Policy
from pco.models.protocols import Tokenizer


@dataclass(frozen=True)
class Rendered:
    """A prompt as the policy reads it."""

    text: str
    token_ids: list[int]


def load_tokenizer(folder: Path) -> Tokenizer:
    """The policy's tokenizer; raises BadInput when the folder has none that loads."""
    from transformers import AutoTokenizer

    try:
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"{folder}: no tokenizer could be loaded from it ({error}).") from error
    return tokenizer


def render(tokenizer: Tokenizer, prompt: str, policy: Policy) -> Rendered:
    """Render a prompt as the policy's `prompt_format` says.

    A chat template writes its own special tokens, so none are added to it (no double BOS); a raw prompt gets those
    that the tokenizer puts before any text.
    """
    if policy.prompt_format == "raw":
        return Rendered(prompt, tokenizer(prompt)["input_ids"])
    messages = [{"role": "user", "content": prompt}]
    if policy.system is not None:
        messages.insert(0, {"role": "system", "content": policy.system})
    text = dialogue(tokenizer, messages, add_generation_prompt=True)
    return Rendered(text, tokenizer(text, add_special_tokens=False)["input_ids"])


def written(tokenizer: Tokenizer, completion: str) -> list[int]:
    """The tokens of a completion as the policy would have written it, the end of text included."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return tokenizer(completion, add_special_tokens=False)["input_ids"] + end


def dialogue(tokenizer: Tokenizer, messages: list[dict[str, str]], *, add_generation_prompt: bool = False) -> str:
    """Messages as the chat template writes them; raises BadInput when it refuses them."""
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except TemplateError as error:
        roles = [message["role"] for message in messages]
        raise BadInput(
            f"{tokenizer.name_or_path}: its chat template refused a dialogue of {roles} ({error}). "
            "Leave the system message out, or correct the template."
        ) from error
