"""How a prompt becomes the tokens that the policy reads: one function for every stage."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from data import prompts
from data.errors import BadInput
from data.prompts import Prompt
from data.rows import Message
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
    except Exception as error:  # each kind of file fails in its own way, the tokenizers library by bare Exception
        told = str(error).strip().partition("\n")[0] or type(error).__name__
        raise BadInput(
            f"{folder}: no tokenizer could be loaded from it ({told}). Copy its tokenizer files anew, or save it again "
            "with `save_pretrained`."
        ) from error
    return tokenizer


def render(tokenizer: Tokenizer, prompt: Prompt, policy: Policy) -> Rendered:
    """Render a prompt as the policy's `prompt_format` says.

    A chat template writes its own special tokens, so none are added to it (no double BOS); a raw prompt gets those
    that the tokenizer puts before any text.

    Raises BadInput for a conversation as a raw prompt, and where the chat template refuses it.
    """
    if policy.prompt_format == "raw":
        if not isinstance(prompt, str):
            raise BadInput(
                f"policy.prompt_format: raw cannot render a conversation (it begins {prompt[0]['content']!r:.60}). Set "
                "prompt_format: chat, or write conversations out with `pco data import --turns transcript`."
            )
        return Rendered(prompt, tokenizer(prompt)["input_ids"])
    text = dialogue(tokenizer, messages_of(prompt, policy), add_generation_prompt=True, today=policy.template_date)
    return Rendered(text, tokenizer(text, add_special_tokens=False)["input_ids"])


def messages_of(prompt: Prompt, policy: Policy) -> list[Message]:
    """The messages that the chat template is given for a prompt."""
    messages = prompts.as_messages(prompt, policy.system)
    return merged(messages) if policy.system_role == "merge" else messages


def merged(messages: list[Message]) -> list[Message]:
    """Messages with the system message at the beginning of the first user turn, a blank line between."""
    tools, turns = prompts.without_tools(messages)
    match turns:
        case [{"role": "system", "content": system}, {"role": "user", "content": text}, *rest]:
            return [*tools, {"role": "user", "content": f"{system}\n\n{text}"}, *rest]
    return messages


def written(tokenizer: Tokenizer, completion: str) -> list[int]:
    """The tokens of a completion as the policy would have written it, the end of text included."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return tokenizer(completion, add_special_tokens=False)["input_ids"] + end


def dialogue(
    tokenizer: Tokenizer,
    messages: list[Message],
    *,
    add_generation_prompt: bool = False,
    system: str = "policy.system",
    today: str | None = None,
) -> str:
    """Messages as the chat template writes them; raises BadInput when it refuses them or fails, or there is none.

    `system` is the setting that puts a system message before them; `today` the date that the template is told,
    as 2026-01-31.
    """
    _check_default(tokenizer)
    tools, turns = prompts.without_tools(messages)
    # A template asks for the date by this function; one that is handed over comes before its own.
    frozen: dict[str, Callable[[str], str]] = (
        {} if today is None else {"strftime_now": date.fromisoformat(today).strftime}
    )
    try:
        return tokenizer.apply_chat_template(
            turns,
            tools=prompts.schemas_of(tools[0]["content"]) if tools else None,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=False,
            **frozen,
        )
    # Templates are programs of other people's, which fail in ways of their own.
    except Exception as error:
        roles = [message["role"] for message in messages]
        raise BadInput(
            f"{tokenizer.name_or_path}: its chat template refused a dialogue of {roles} ({type(error).__name__}: "
            f"{error}). {_advice(roles, system)}"
        ) from error


_DAYS = ("2001-02-03", "2024-11-30")


def writes_date(tokenizer: Tokenizer, dialogues: Iterable[list[Message]]) -> bool:
    """Whether the chat template writes another text of one of these dialogues on another day."""
    for messages in dialogues:
        first, second = (dialogue(tokenizer, messages, today=day) for day in _DAYS)
        if first != second:
            return True
    return False


def _check_default(tokenizer: Tokenizer) -> None:
    """Raises BadInput where the tokenizer has no chat template, or several and none called default."""
    template = tokenizer.chat_template
    if not template:
        raise BadInput(
            f"{tokenizer.name_or_path}: its tokenizer has no chat template. Give it one, or set policy.prompt_format: "
            "raw."
        )
    if isinstance(template, dict) and "default" not in template:
        raise BadInput(
            f"{tokenizer.name_or_path}: its tokenizer has several chat templates ({', '.join(template)}) and none "
            "called default. Call one of them default in the tokenizer's files."
        )


def _advice(roles: list[str], system: str) -> str:
    if "system" in roles:
        merge = " or set policy.system_role: merge," if system == "policy.system" else ""
        return f"Leave the system message out (`{system}`, or that of the prompt),{merge} or correct the template."
    if len(roles) > 2 or "tool" in roles:
        return "Leave such conversations out, or correct the template."
    return "Correct the template."
