"""The rewards a config may choose from, by `kind`; docs/rewards.md has an example of each."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from data import files, packaged
from pco.config import file
from pco.config.overrides import overridden
from pco.config.section import Section, added, iso_date, settings_of


class RepetitionReward(Section):
    """Minus the share of repeated token n-grams of a completion: 0 is best, -1 worst."""

    kind: Literal["repetition"] = "repetition"
    ngram: int = Field(3, ge=1)
    """Length of the n-grams in tokens."""


class LengthReward(Section):
    """0 for a completion whose length lies in a window; outside, minus its distance relative to the nearer bound."""

    kind: Literal["length"] = "length"
    min_tokens: int = Field(0, ge=0)
    """Shortest length that costs nothing, in the policy's tokens."""
    max_tokens: int = Field(ge=1)
    """Longest length that costs nothing, in the policy's tokens."""

    @model_validator(mode="after")
    def _window_is_open(self) -> Self:
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens ({self.min_tokens}) is above max_tokens ({self.max_tokens})")
        return self


class RegexReward(Section):
    """1 for a completion in which a pattern is found, else 0."""

    kind: Literal["regex"] = "regex"
    pattern: str
    r"""Python regular expression, searched anywhere in the completion; `\A` and `\Z` anchor it, `(?s)` sets a flag."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        _compiled(pattern)
        return pattern


class JsonSchemaReward(Section):
    """1 for a completion that is one JSON value and fits a JSON Schema, else 0."""

    kind: Literal["json_schema"] = "json_schema"
    inline: dict[str, Any] | None = None
    """The schema itself. Either this or `file`."""
    file: str | None = None
    """A JSON file that holds the schema."""

    @field_validator("inline")
    @classmethod
    def _is_a_schema(cls, inline: dict[str, Any] | None) -> dict[str, Any] | None:
        if inline is not None and (fault := schema_fault(inline)):
            raise ValueError(fault)
        return inline

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.inline is None) == (self.file is None):
            raise ValueError("give the schema either under `inline` or as a `file`")
        return self


class ExactAnswerReward(Section):
    """1 for a completion whose last answer equals the prompt's `reference`, white space around it aside; else 0.

    Runs that were made before `numbers` was there compare texts (`as_it_was`): to compare otherwise from some round on
    would look like progress. A new version of the stages could not tell the two apart, since a round may begin after
    it; the setting stands in the run's config.
    """

    kind: Literal["exact_answer"] = "exact_answer"
    numbers: bool = True
    """Two numbers are equal if their values are: 4.0 and 4, 1,000 and 1000, .5 and 0.5, $18 and 18. false: texts."""
    pattern: str
    r"""Python regular expression whose one group is the answer, e.g. `answer is (\S+)`; its last match counts."""

    @field_validator("pattern")
    @classmethod
    def _has_one_group(cls, pattern: str) -> str:
        groups = _compiled(pattern).groups
        if groups != 1:
            raise ValueError(f"has {groups} groups; expected one, around the answer; write others as (?:...)")
        return pattern


class PythonReward(Section):
    """A function of your own: a list of candidates in, a list of as many numbers out, higher is better."""

    kind: Literal["python"] = "python"
    function: str = Field(pattern=r"^[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*$")
    """`module:function`, e.g. `my_rewards:brevity`."""
    folder: str = "."
    """The folder in which the module is looked for first; installed modules are found, too."""


class ModelReward(Section):
    """The one logit of a Hugging Face sequence classification model, which reads prompt and completion."""

    kind: Literal["model"] = "model"
    model: str
    """A local Hugging Face folder or a hub id, also of a LoRA adapter."""
    revision: str | None = None
    """Commit, tag or branch of a hub model; only a commit stands for the same weights forever."""
    system: str | None = None
    """System message that the reward model is shown; the policy's own is not passed on."""
    template_date: str | None = added(None)
    """As `policy.template_date`, for the reward model's own chat template."""
    append_eos: bool = True
    """End the text with the tokenizer's end-of-text token where no other special token ends it."""
    max_tokens: int | None = Field(None, ge=1)
    """Candidates with a longer text get no reward and are counted; by default what the model can read. None is cut."""
    max_tokens_per_batch: int = Field(16384, ge=1)
    """Texts scored together, in tokens with their padding: changes memory and speed, not the result."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Number format of weights and activations; `auto` is that of the files."""
    backend: Literal["auto", "vllm", "transformers"] = "auto"
    """What runs the model: changes speed, and the result by rounding alone. `auto` is vLLM on a CPU where it is known
    to score with such a model as transformers does, else transformers."""

    _date_is_one = field_validator("template_date", mode="before")(iso_date)


class JudgeReward(Section):
    """The share of comparisons that a language model, asked over an OpenAI-compatible endpoint, decides for a text."""

    kind: Literal["judge"] = "judge"
    base_url: str
    """The endpoint up to its `/v1`, e.g. `http://127.0.0.1:8000/v1`; no key or password in it."""
    model: str = Field(min_length=1)
    """The judge's name at the endpoint. It stands for the judge: another endpoint may serve the same one."""
    api_key_env: str | None = Field(None, pattern=r"^[A-Z_][A-Z0-9_]*$")
    """The environment variable that holds the key, never the key itself; null sends none."""
    template: str | None = None
    """A text file to ask with instead of the built-in text; it holds {prompt}, {first} and {second}."""
    verdicts: Literal["three", "five"] = added("three")
    """`three`: A, B or tie. `five`: A>>B, A>B, A=B, B>A or B>>A, as Arena-Hard asks; a slight win is three quarters."""
    against: Literal["candidates", "reference"] = "candidates"
    """`candidates`: with the prompt's other candidates, or in an evaluation with the starting policy's completion.
    `reference`: with the prompt's `reference`."""
    opponents: int | None = Field(None, ge=1)
    """Draw so many of a prompt's other candidates for each, so that it is compared up to twice as often; null: all."""
    temperature: float = Field(0.0, ge=0)
    """The judge's sampling temperature."""
    max_tokens: int = Field(256, ge=1)
    """Limit of an answer in tokens, for the reasoning of a model that reasons, too."""
    concurrency: int = Field(8, ge=1)
    """Requests under way at a time."""
    requests_per_minute: float | None = Field(None, gt=0)
    """Begin no more requests than that; null: no limit."""
    timeout_s: float = Field(120.0, gt=0)
    """A request that takes longer, in seconds, is given up and tried again."""
    retries: int = Field(6, ge=0)
    """How often a request is tried again, after ever longer waits, before the stage fails."""
    input_price: float = Field(0.0, ge=0)
    """Price of a million tokens read, for the `cost` that is reported."""
    output_price: float = Field(0.0, ge=0)
    """Price of a million tokens written."""

    @field_validator("base_url")
    @classmethod
    def _is_a_plain_address(cls, base_url: str) -> str:
        try:
            found = urlsplit(base_url)
            plain = found.scheme in {"http", "https"} and bool(found.hostname) and found.port != 0
        except ValueError:  # a port that is none
            plain = False
        if not plain or set("@?#") & set(base_url) or base_url.split() != [base_url]:
            raise ValueError("expected http://HOST:PORT/v1 or the like, without a user, a password, `?` or `#`")
        return base_url

    @model_validator(mode="after")
    def _draws_among_candidates(self) -> Self:
        if self.opponents is not None and self.against == "reference":
            raise ValueError("`opponents` are drawn among candidates; leave it out with against: reference")
        return self


_Singles = (
    RepetitionReward
    | LengthReward
    | RegexReward
    | JsonSchemaReward
    | ExactAnswerReward
    | PythonReward
    | ModelReward
    | JudgeReward
)
Single = Annotated[_Singles, Field(discriminator="kind")]


class Member(Section):
    """One reward of an ensemble."""

    reward: Single
    """Any reward but another ensemble."""
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Its weight in the mean (and in the deviation from it)."""


class EnsembleReward(Section):
    """Several rewards as one; what each member said is kept beside the result."""

    kind: Literal["ensemble"] = "ensemble"
    members: list[Member] = Field(min_length=2)
    """The rewards, at least two."""
    combine: Literal["mean", "min", "mean_minus_std"] = "mean"
    """Weighted mean, the lowest, or the mean minus `uncertainty_weight` times the members' standard deviation."""
    uncertainty_weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    """How much disagreement of the members costs (`mean_minus_std` only)."""

    @model_validator(mode="after")
    def _weights_mean_something(self) -> Self:
        if self.combine == "min" and any(member.weight != 1 for member in self.members):
            raise ValueError("`combine: min` takes no weights; leave them out, or combine: mean")
        return self


RewardConfig = Annotated[_Singles | EnsembleReward, Field(discriminator="kind")]


class RewardSection(Section):
    """The part of a config that is a reward."""

    reward: RewardConfig


def read(path: Path, overrides: list[str] | None = None) -> RewardConfig:
    """The reward under `reward` of a YAML file, which may be a run's config; the other sections are not looked at.

    Raises BadInput that names each fault with its key.
    """
    return _section(file.read(RewardSection, path, overrides or []), source=str(path))


def of_model(name: str, overrides: list[str] | None = None) -> RewardConfig:
    """The reward of a model's folder or hub id; overrides are those of a config, such as `reward.dtype=float32`.

    Raises BadInput that names each fault with its key.
    """
    raw = {"reward": {"kind": "model", "model": name}}
    return _section(overridden(RewardSection, raw, overrides or []), source=name)


def _section(raw: dict[str, Any], *, source: str) -> RewardConfig:
    section = {key: value for key, value in raw.items() if key == "reward"}
    return absolute(file.validated(RewardSection, section, source=source).reward)


def models(config: RewardConfig) -> list[str]:
    """The folders and hub ids of the models that a reward needs."""
    return [part.model for part in parts(config) if isinstance(part, ModelReward)]


def parts(reward: RewardConfig) -> list[Single]:
    """The rewards that a reward consists of: an ensemble's members, or itself."""
    return [member.reward for member in reward.members] if isinstance(reward, EnsembleReward) else [reward]


def compares_with_reference(reward: RewardConfig) -> bool:
    """Whether a reward has nothing to say of a prompt without a `reference`."""
    return any(
        isinstance(part, ExactAnswerReward) or (isinstance(part, JudgeReward) and part.against == "reference")
        for part in parts(reward)
    )


# Where and how fast a reward is computed, not what it is.
_HOW_SCORING_RUNS = (
    "max_tokens_per_batch",
    "backend",
    "base_url",
    "api_key_env",
    "concurrency",
    "requests_per_minute",
    "timeout_s",
    "retries",
    "input_price",
    "output_price",
)


def settings(reward: RewardConfig) -> dict[str, Any]:
    """What decides a reward's results, and no other settings."""
    dump = settings_of(reward)
    if isinstance(reward, EnsembleReward):
        dump["members"] = [settings_of(member) for member in reward.members]
    for part in (dump, *(member["reward"] for member in dump.get("members", []))):
        for name in _HOW_SCORING_RUNS:
            part.pop(name, None)
        if part["kind"] == "exact_answer" and not part["numbers"]:
            del part["numbers"]  # how it was before there was a choice
    return dump


def as_it_was(raw: Any) -> Any:
    """A reward as it stands in the config of a run, with what settings meant that were not there yet."""
    if not isinstance(raw, dict):
        return raw
    if raw.get("kind") == "exact_answer":
        return {"numbers": False, **raw}
    if isinstance(raw.get("members"), list):
        return {**raw, "members": [_member_as_it_was(member) for member in raw["members"]]}
    return raw


def _member_as_it_was(raw: Any) -> Any:
    return {**raw, "reward": as_it_was(raw.get("reward"))} if isinstance(raw, dict) else raw


def dated(reward: RewardConfig, dates: Mapping[str, str], name: str) -> RewardConfig:
    """The reward with the dates that its models' templates are told, by the models' names in the config."""
    match reward:
        case EnsembleReward():
            members = [
                member.model_copy(update={"reward": dated(member.reward, dates, f"{name}.members.{i}")})
                for i, member in enumerate(reward.members)
            ]
            return reward.model_copy(update={"members": members})
        case ModelReward() if name in dates:
            return reward.model_copy(update={"template_date": dates[name]})
        case _:
            return reward


def absolute(reward: RewardConfig) -> RewardConfig:
    """The reward with all its paths made absolute; a hub id stays one."""
    match reward:
        case EnsembleReward():
            members = [member.model_copy(update={"reward": absolute(member.reward)}) for member in reward.members]
            return reward.model_copy(update={"members": members})
        case ModelReward() if files.exists(Path(reward.model).expanduser()):
            return reward.model_copy(update={"model": _absolute(reward.model)})
        case PythonReward():
            return reward.model_copy(update={"folder": _absolute(reward.folder)})
        case JsonSchemaReward(file=str(file)):
            return reward.model_copy(update={"file": _absolute(file)})
        case JudgeReward(template=str(file)):
            return reward.model_copy(update={"template": _absolute(file)})
        case _:
            return reward


def schema_fault(schema: Any) -> str | None:
    """Why something is not a JSON Schema that can be held on its own; None when it is one."""
    import jsonschema

    try:
        jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator).check_schema(schema)
    except (jsonschema.SchemaError, RecursionError) as error:
        return f"not a JSON Schema: {getattr(error, 'message', error)}"
    outside = [ref for ref in _references(schema) if not ref.startswith("#")]
    return f"refers to {outside[0]!r}; only references into itself (#/...) are followed" if outside else None


def _references(schema: Any) -> list[str]:
    if isinstance(schema, list):
        return [ref for item in schema for ref in _references(item)]
    if not isinstance(schema, dict):
        return []
    own = [schema["$ref"]] if isinstance(schema.get("$ref"), str) else []
    return own + [ref for item in schema.values() for ref in _references(item)]


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"not a regular expression ({error})") from None


def _absolute(path: str) -> str:
    return str(packaged.absolute(path))
