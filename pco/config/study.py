"""The config of a study: variants x seeds of one run config (docs/studies.md)."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, field_validator, model_validator

from data import packaged
from data.errors import BadInput
from pco.config import file as config_file
from pco.config import typed
from pco.config.overrides import Raw, overridden
from pco.config.run import RunConfig, parse
from pco.config.section import Section

FOLDER = "studies"  # in that of all runs
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,59}$"
_OWN = {  # settings of a run that a study gives itself
    "run": "runs are named STUDY-VARIANT-sSEED",
    "runs_dir": "all runs of a study lie in one folder: set it in the base config",
    "seed": "all variants have the same seeds: `seeds`",
}
_LONGEST_RUN = 100
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._]+")


class StudyFile(Section):
    """What stands in the file."""

    study: str = Field(pattern=NAME)
    """Name of the study; its runs are named STUDY-VARIANT-sSEED."""
    base: str | None = None
    """The run config that the variants change: a path from this file's folder, or `package:presets/NAME.yaml`. Its
    `run` and `seed` do not count."""
    run: dict[str, Any] | None = None
    """The run config itself, in place of `base`."""
    variants: dict[str, dict[str, Any]] = {}
    """By name, what each variant changes in the base config: sections as there, or dotted keys as of `--set`. The first
    variant is what the others are compared with."""
    sweep: dict[str, list[Any]] = {}
    """By dotted key, the values of a grid. With `variants`, each of these has every point of the grid."""
    seeds: int | list[int] = 3
    """So many seeds, from 0 on, or the seeds themselves."""
    max_concurrent: int = Field(1, ge=1)
    """So many runs are made at a time."""

    @field_validator("seeds")
    @classmethod
    def _seeds_are_seeds(cls, seeds: int | list[int]) -> list[int]:
        listed = list(range(seeds)) if isinstance(seeds, int) else seeds
        if not listed or min(listed) < 0 or len(set(listed)) < len(listed):
            raise ValueError("expected a number of 1 or more, or a list of different seeds of 0 or more")
        return listed

    @model_validator(mode="after")
    def _base_is_named_once(self) -> "StudyFile":
        if (self.base is None) == (self.run is None):
            raise ValueError("give `base`, the path of a run config, or `run`, the config itself; either, not both")
        if not self.variants and not self.sweep:
            raise ValueError("nothing to compare: name `variants`, or values under `sweep`")
        for name in self.variants:
            if not re.fullmatch(NAME, name):
                raise ValueError(f"variants.{name}: expected a name of letters, digits, `.`, `_` and `-`")
        for key, values in self.sweep.items():
            if not values or any(isinstance(value, (list, dict)) for value in values):
                raise ValueError(f"sweep.{key}: expected one or more plain values; write others out as `variants`")
        return self


class _Read(BaseModel):
    """How the file is read: texts of an inline run config are the texts that were written."""

    study: str
    base: str
    run: RunConfig


class Study(Section):
    """A study whose settings are all known: each variant as a run config, with the seed of its first run."""

    name: str
    variants: dict[str, RunConfig]
    seeds: list[int]
    max_concurrent: int = 1

    @property
    def runs_dir(self) -> Path:
        """The folder that holds all runs."""
        return Path(next(iter(self.variants.values())).runs_dir)

    @property
    def folder(self) -> Path:
        """Where its results lie; its runs lie beside all others."""
        return self.runs_dir / FOLDER / self.name

    @property
    def run(self) -> str:
        """Its name, as a run has one."""
        return self.name

    @property
    def first(self) -> str:
        """The variant that the others are compared with."""
        return next(iter(self.variants))

    @property
    def runs(self) -> list[tuple[str, int]]:
        """Variant and seed of each run, in the order in which they are made: seed by seed."""
        return [(variant, seed) for seed in self.seeds for variant in self.variants]

    def config(self, variant: str, seed: int) -> RunConfig:
        """The config of one run."""
        return self.variants[variant].model_copy(update={"run": run_name(self.name, variant, seed), "seed": seed})


def run_name(study: str, variant: str, seed: int) -> str:
    """The name of a run of a study."""
    return f"{study}-{variant}-s{seed}"


def load(path: Path, overrides: Sequence[str] = (), *, name: str | None = None, at_a_time: int | None = None) -> Study:
    """Read a study's YAML file; `overrides` are `a.b=value` strings for the base config, before the variants change it.

    `name` and `at_a_time` replace `study` and `max_concurrent`.

    Raises BadInput naming the file, the variant and the key.
    """
    raw = config_file.read(_Read, path, [])
    raw |= {} if name is None else {"study": name}
    raw |= {} if at_a_time is None else {"max_concurrent": at_a_time}
    study = config_file.validated(StudyFile, raw, source=str(path))
    for override in overrides:
        key = override.partition("=")[0]
        if key in _OWN and key != "runs_dir":
            raise BadInput(f"--set {override}: a study gives itself `{key}`: {_OWN[key]}.")
    base = _base(path, study, list(overrides))
    listed = _variants(study, source=str(path))
    recorded = _recorded(Path(str(base.get("runs_dir", "runs"))).expanduser() / FOLDER / study.study)
    variants: dict[str, RunConfig] = {}
    for variant, changes in listed:
        config = _config(study, variant, changes, base, recorded, source=f"{path}: variant `{variant}`")
        _check_different(path, variant, config, variants)
        variants[variant] = config
    seeds = study.seeds if isinstance(study.seeds, list) else [study.seeds]
    return Study(name=study.study, variants=variants, seeds=seeds, max_concurrent=study.max_concurrent)


def _base(path: Path, study: StudyFile, overrides: list[str]) -> Raw:
    if study.run is not None:
        return overridden(RunConfig, study.run, overrides)
    name = str(study.base)
    is_package = name.startswith(packaged.PREFIX)
    base = Path(name) if is_package else packaged.absolute(path).parent / Path(name).expanduser()
    return config_file.read(RunConfig, base, overrides)


def _recorded(folder: Path) -> Mapping[str, Any]:
    """The variants of a study that has begun: number formats are decided once for all its runs."""
    record = config_file.of_run(folder)
    variants = (record or {}).get("variants")
    return variants if isinstance(variants, dict) else {}


def _variants(study: StudyFile, *, source: str) -> list[tuple[str, dict[str, Any]]]:
    """Name and changes of every variant at every point of the grid.

    Raises BadInput for names that would share a folder.
    """
    labels = [_labels(key, values, study.sweep) for key, values in study.sweep.items()]
    listed: list[tuple[str, dict[str, Any]]] = []
    for name, changes in (study.variants or {"": {}}).items():
        for point in itertools.product(*labels):
            parts = [name, *(label for _, label, _ in point)]
            swept = {key: value for key, _, value in point}
            both = sorted(key for key, _ in _flat(changes, {}) if key in swept)
            if both:
                raise BadInput(
                    f"{source}: variants.{name}: {both[0]} is in `sweep` as well. Name it in one of the two."
                )
            listed.append(("-".join(filter(None, parts)), {**changes, **swept}))
    same = [name for name, count in Counter(name.lower() for name, _ in listed).items() if count > 1]
    if same:
        names = ", ".join(name for name, _ in listed if name.lower() == same[0])
        raise BadInput(
            f"{source}: variants {names} would share a folder. Give them names that differ by more than case."
        )
    return listed


def _labels(key: str, values: list[Any], sweep: Mapping[str, object]) -> list[tuple[str, str, Any]]:
    """Key, name and value of each value of a sweep; the name has the key's last word, or all where two end alike."""
    last = key.rpartition(".")[2]
    is_alone = sum(other.rpartition(".")[2] == last for other in sweep) == 1
    word = last if is_alone else key
    texts = [value if isinstance(value, str) else json.dumps(value, default=str) for value in values]
    return [
        (key, _NOT_IN_A_NAME.sub("-", f"{word}{text}").strip("-"), value)
        for text, value in zip(texts, values, strict=True)
    ]


def _config(
    study: StudyFile,
    variant: str,
    changes: Mapping[str, Any],
    base: Raw,
    recorded: Mapping[str, Any],
    *,
    source: str,
) -> RunConfig:
    """A variant's config with the study's first seed; raises BadInput that names the variant."""
    seeds = study.seeds if isinstance(study.seeds, list) else [study.seeds]
    longest = max((run_name(study.study, variant, seed) for seed in seeds), key=len)
    if len(longest) > _LONGEST_RUN:
        raise BadInput(f"{source}: its run {longest} has {len(longest)} letters, and may have {_LONGEST_RUN}.")
    sets = []
    for key, value in _flat(changes, base):
        if key in _OWN:
            raise BadInput(f"{source}: {key}: a variant cannot set it: {_OWN[key]}.")
        sets.append(f"{key}={_as_text(key, value, source)}")
    doubled = [key for key, count in Counter(text.partition("=")[0] for text in sets).items() if count > 1]
    if doubled:
        raise BadInput(f"{source}: {doubled[0]} is set twice, in a section and by its dotted key. Keep one.")
    try:
        raw = overridden(RunConfig, base, sets)
    except BadInput as error:
        raise BadInput(f"{source}: {str(error).removeprefix('--set ')}") from None
    raw |= {"run": run_name(study.study, variant, seeds[0]), "seed": seeds[0]}
    known = recorded.get(variant) or next(iter(recorded.values()), None)
    config = parse(raw, source=source, recorded=known)
    _check_can_be_compared(config, source)
    return config


def _flat(changes: Mapping[str, Any], base: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested changes by dotted key. A mapping changes a section; in place of anything else it is a value."""
    for name, value in changes.items():
        key = f"{prefix}{name}"
        present = _at(base, key)
        if isinstance(value, Mapping) and value and (present is None or isinstance(present, Mapping)):
            yield from _flat(value, base, f"{key}.")
        else:
            yield key, value


def _at(raw: Mapping[str, Any], dotted: str) -> object:
    section: Any = raw
    for key in dotted.split("."):
        section = section.get(key) if isinstance(section, Mapping) else None
    return section


def _as_text(key: str, value: object, source: str) -> str:
    """A value as `--set` takes it; raises BadInput for a number, a date or a yes where a text belongs."""
    is_plain = not isinstance(value, (str, list, dict)) and value is not None
    if is_plain and typed.is_text(typed.under([RunConfig], key)):
        raise BadInput(f"{source}: {key}: a text belongs here, and YAML reads {value!r}. Write it in quotes.")
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError:
        raise BadInput(f"{source}: {key}: YAML reads {value!r}. Write texts in quotes.") from None


def _check_can_be_compared(config: RunConfig, source: str) -> None:
    if config.prompts.has_test:
        raise BadInput(
            f"{source}: prompts.test or prompts.test_share: every run of the study would look at the test set. Leave "
            "it out, and put the best run to it afterwards: `pco test RUN --prompts FILE`."
        )
    if config.series is not None:
        raise BadInput(
            f"{source}: series: each run of a series has prompts of its own, and those of a study have the same ones. "
            "Leave it out."
        )
    if config.gate.otherwise == "ask":
        raise BadInput(f"{source}: gate.otherwise: a study asks nobody in the middle. Choose stop or roll_back.")


def _check_different(path: Path, variant: str, config: RunConfig, others: Mapping[str, RunConfig]) -> None:
    settings = config.model_dump(exclude={"run"})
    for other, known in others.items():
        if known.model_dump(exclude={"run"}) == settings:
            raise BadInput(f"{path}: variants `{other}` and `{variant}` have the same settings. Leave one out.")
