"""A series of runs: each begins from the best policy of the last one, and learns from prompts that none has used."""

from typing import Literal

from pydantic import Field

from pco.config.section import Section


class Begun(Section):
    """What a run of a series came to when it began: the policy it begins from, and its rows of the training prompts."""

    by: str
    """The run that this is of; a fork of it is a run of its own."""
    number: int = Field(ge=1)
    """Its place among the runs of the series."""
    at: str
    """When it began, UTC."""
    model: str
    """`policy.model` of the config, from which the series begins."""
    revision: str | None
    """`policy.revision` of the config."""
    train: str
    """`prompts.train` of the config: the file that grows."""
    from_run: str | None
    """The run that trained the policy it begins from, the best of the series; null: it is that of the config."""
    from_round: int = Field(ge=0)
    """The round that trained it; 0: none did."""
    policy: str
    """The digest of this policy; empty for the first run, whose first stage finds it."""
    first_row: int = Field(ge=0)
    """The first row of its window, from 0."""
    end_row: int = Field(ge=1)
    """The row after the last one of its window."""
    end_byte: int = Field(ge=1)
    """Where the window ends in the file."""
    digest: str
    """SHA-256 of the file up to there."""
    window: str
    """SHA-256 of the window."""


class Series(Section):
    """Runs one after the other, each from the best policy of the last one that finished."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Name of the series. Its runs have names of their own, such as `nightly-{date}`."""
    prompts: int | None = Field(None, ge=1)
    """Each run takes the next so many rows of `prompts.train`, a JSONL file that may grow; null: all that are new."""
    at_least: int = Field(1, ge=1)
    """With fewer new rows no run begins; they wait for the next one."""
    on_overlap: Literal["skip", "queue"] = "skip"
    """What a run does while another one of the series is at work: `skip` leaves it out, `queue` has it begin later."""
    begun: Begun | None = None
    """Written into the run's config.yaml when it begins; nothing to set."""
