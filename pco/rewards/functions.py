"""A reward that is a Python function of the user's."""

from data.errors import BadInput
from pco.config.reward import PythonReward
from pco.models import user_code
from pco.models.user_code import UserFunction
from pco.rewards.scores import Candidates, Score, Scorer


def named(config: PythonReward) -> UserFunction:
    """The function that the config names."""
    module, _, name = config.function.partition(":")
    return UserFunction("reward", module, name, config.folder)


def scorer(config: PythonReward) -> Scorer:
    """A scorer that calls the function with lists of candidates and checks that it returns one number for each."""
    judge = user_code.load(named(config))

    def score(candidates: Candidates) -> list[Score]:
        if not candidates:
            return []
        try:
            values = judge([dict(row) for row in candidates])
        except Exception as error:
            raise BadInput(
                f"reward.function {config.function}: failed on {len(candidates)} candidates "
                f"({type(error).__name__}: {error})."
            ) from error
        return [Score(value) for value in _checked(values, len(candidates), config)]

    return score


def _checked(values: object, count: int, config: PythonReward) -> list[float]:
    expected = f"reward.function {config.function}: expected a list of {count} numbers, one per candidate;"
    if not isinstance(values, list | tuple):
        raise BadInput(f"{expected} it returned {type(values).__name__}.")
    if len(values) != count:
        raise BadInput(f"{expected} it returned {len(values)}.")
    return [_number(value, f"{expected} number {i + 1} is {value!r}.") for i, value in enumerate(values)]


def _number(value: object, message: str) -> float:
    """A float, an int, or what turns into one as numpy's numbers do; text and lists do not, and True is no number."""
    if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
        raise BadInput(message)
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadInput(message) from error
