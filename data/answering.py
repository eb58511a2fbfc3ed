"""A prompt column and answer columns as one question and its answers.

Answers may be texts, messages or transcripts, and may repeat what was said before them. Each reading requires that all
columns of the row agree; where they do not, the row is dropped by reason.
"""

from dataclasses import dataclass

from data.conversations import (
    EMPTY_ANSWER,
    EMPTY_PROMPT,
    STRAY_TURNS,
    Cell,
    Dropped,
    Message,
    Question,
    conversation,
    is_nothing,
    read,
    transcript,
)

NO_PROMPT = "no prompt: plain texts, and no column holds a prompt"
PROMPTS_DIFFER = "chosen and rejected answer different prompts"
CONTRADICTION = "the prompt column contradicts the conversation in the answers"
MIXED = "one answer is a text, the other messages"
ENDS_WITH_ANSWER = "the prompt's last turn is an answer, and neither of the row's"
REPEATED_PROMPT = "answers begin with the prompt's words, maybe repeating it"
_OPEN_TURN = "\n\nAssistant:"


@dataclass(frozen=True)
class Compared:
    """One question and its two answers."""

    question: Question
    chosen: str
    rejected: str
    repeated: bool  # whether both answers repeated the prompt, which is removed from them here


def compared(prompt: Cell | None, chosen: Cell, rejected: Cell) -> Compared:
    """One question and its two answers. Raises Dropped, also when the two do not answer the same question."""
    asked = _asked(prompt)
    sides = [_said(answer) for answer in (chosen, rejected)]
    if isinstance(sides[0], str) != isinstance(sides[1], str):
        raise Dropped(MIXED)
    asked = _without_answer(asked, sides)
    if asked is None and prompt is not None and isinstance(sides[0], str):
        raise Dropped(EMPTY_PROMPT)
    question, better = _answered(asked, sides[0], chosen)
    other, worse = _answered(asked, sides[1], rejected)
    if question != other:
        raise Dropped(PROMPTS_DIFFER)
    last = _last(question)
    # Messages say where an answer begins; a text does not.
    repeated = isinstance(sides[0], str) and _repeats(better, last) and _repeats(worse, last)
    if repeated:
        better, worse = (_rest(last, answer) for answer in (better, worse))
    return Compared(question, better, worse, repeated)


def answered(prompt: Cell | None, answer: Cell) -> tuple[Question, str]:
    """What was asked and what was answered. Raises Dropped, also for an answer that may repeat the prompt."""
    asked, said = _asked(prompt), _said(answer)
    if asked is None and prompt is not None and isinstance(said, str):
        raise Dropped(EMPTY_PROMPT)
    question, text = _answered(_without_answer(asked, [said]), said, answer)
    if isinstance(said, str) and _several_words(_last(question)) and _repeats(text, _last(question)):
        raise Dropped(REPEATED_PROMPT)
    return question, text


def ended(whole: Cell) -> tuple[Question, str]:
    """A conversation that ends with its answer."""
    return _from_messages(None, _said(whole), whole)


def with_messages(question: Question, whole: Cell) -> Question:
    """A question with what else a column of messages says before it. Raises Dropped where the two contradict.

    The column may go on with an answer.
    """
    if is_nothing(whole.value) or whole.value == []:
        return question
    said = conversation(read(whole))
    if isinstance(said, str):
        raise Dropped(CONTRADICTION)
    context = said[:-1] if said[-1][0] == "assistant" else said
    if isinstance(question, str):
        return question if context == [("user", question)] else _around_text(question, context)
    if context[-len(question) :] != question:
        raise Dropped(CONTRADICTION)
    return context


def _asked(prompt: Cell | None) -> Question | None:
    return None if prompt is None or is_nothing(prompt.value) else read(prompt)


def _said(answer: Cell) -> Question:
    if is_nothing(answer.value) or answer.value == []:
        raise Dropped(EMPTY_ANSWER)
    said = read(answer)
    return conversation(said) if isinstance(said, str) and said.lstrip().startswith("Human:") else said


def _without_answer(asked: Question | None, sides: list[Question]) -> Question | None:
    """A prompt of messages that ends with one of the row's answers, without it."""
    if not isinstance(asked, list) or not asked or asked[-1][0] != "assistant":
        return asked
    wholes = [[*asked[:-1], ("assistant", side)] if isinstance(side, str) else side for side in sides]
    return asked[:-1] if asked in wholes else asked


def _answered(asked: Question | None, said: Question, cell: Cell) -> tuple[Question, str]:
    if isinstance(said, str):
        return _from_text(asked, said, cell)
    return _from_messages(conversation(asked) if isinstance(asked, str) else asked, said, cell)


def _from_text(asked: Question | None, answer: str, cell: Cell) -> tuple[Question, str]:
    if asked is None:
        raise Dropped(NO_PROMPT)
    if not answer.strip():
        raise Dropped(EMPTY_ANSWER)
    turns = transcript(asked) if isinstance(asked, str) else None
    if isinstance(asked, str) and turns is not None:
        return _continued(asked, turns, answer, cell)
    if "\n\nHuman:" in answer and _OPEN_TURN in answer:  # one of the two alone may be what an answer is about
        raise Dropped(STRAY_TURNS)
    if isinstance(asked, list) and asked and asked[-1][0] == "assistant":
        raise Dropped(ENDS_WITH_ANSWER)
    return asked, answer


def _continued(asked: str, turns: list[Message], answer: str, cell: Cell) -> tuple[Question, str]:
    """A transcript and the text that follows it, which may bring more turns."""
    if turns[-1][0] == "user":
        asked += _OPEN_TURN
    elif turns[-1][1].strip():
        raise Dropped(ENDS_WITH_ANSWER)
    whole = transcript(asked + answer)
    return _from_messages(None, whole or [], cell)


def _from_messages(asked: Question | None, said: Question, cell: Cell) -> tuple[Question, str]:
    if isinstance(said, str):
        raise Dropped(f"malformed: `{cell.column}` is a text, not a conversation")
    if not said:
        raise Dropped(EMPTY_ANSWER)
    if said[-1][0] != "assistant":
        raise Dropped(f"malformed: the last message of `{cell.column}` is not the assistant's")
    return _before(asked, said[:-1]), said[-1][1]


def _before(asked: Question | None, context: list[Message]) -> Question:
    """The whole of what was said before an answer; `context` is the part that came with the answer."""
    if asked is None:
        return context
    if isinstance(asked, str):
        return _around_text(asked, context)
    if asked and asked[-1] == ("assistant", ""):
        asked = asked[:-1]  # a transcript's "Assistant:", which the answer follows
    if not context or context[: len(asked)] == asked:
        return context or asked
    if asked[-1][0] != "user" and context[0][0] == "user":
        return [*asked, *context]
    if asked[0][0] == "system" and context[: len(asked) - 1] == asked[1:]:
        return [asked[0], *context]
    raise Dropped(CONTRADICTION)


def _around_text(asked: str, context: list[Message]) -> list[Message]:
    """A prompt of text is the first or the last that the user says in the conversation, if there is one."""
    if not context:
        return [("user", asked)]
    users = [text.strip() for speaker, text in context if speaker == "user"]
    if asked.strip() not in users[:1] + users[-1:]:
        raise Dropped(CONTRADICTION)
    return context


def _last(question: Question) -> str:
    if isinstance(question, str):
        return question
    return question[-1][1] if question else ""


def _repeats(answer: str, prompt: str) -> bool:
    return bool(prompt.strip()) and answer.startswith(prompt)


def _several_words(prompt: str) -> bool:
    """Whether a prompt is long enough that an answer does not begin with all of its words by chance."""
    return len(prompt.split()) > 1


def _rest(prompt: str, answer: str) -> str:
    """An answer without the prompt that it repeats.

    Raises Dropped unless the prompt clearly ends there: at a line break, or after a full stop, question mark or colon.
    """
    rest, words = answer[len(prompt) :], prompt.rstrip()
    between = prompt[len(words) :] + rest
    at_line_end = "\n" in between[: len(between) - len(between.lstrip())]
    at_sentence_end = words[-1] in ".?:" and between[:1].isspace()
    if not _several_words(prompt) or not (at_line_end or at_sentence_end):
        raise Dropped(REPEATED_PROMPT)
    return rest
