"""The config of a trace: which answer of a run, and which parameters count."""

from pathlib import Path
from typing import Any, Literal

from pco.config.run import RunConfig
from pco.config.section import Section
from pco.config.train import deciding

Parameters = Literal["all", "last-blocks", "head"]
LAST_BLOCKS = 2  # that `last-blocks` has


class Trace(Section):
    """From an answer to the pairs of the training behind it that moved its log-probability."""

    kind: Literal["trace"] = "trace"
    """Tells this config from that of a run."""
    traced: RunConfig
    """The run, as its training had it."""
    name: str
    """Of the trace's folder; it tells traces of other answers and other trainings apart."""
    answered: int
    """The round in which the answer lies."""
    prompt_id: str
    mode: str
    """`greedy` or `sampled`."""
    sample: int
    parameters: Parameters
    """Whose gradients count."""

    @property
    def run(self) -> str:
        """The run's name, for messages."""
        return self.traced.run

    @property
    def folder(self) -> Path:
        """Where everything of this trace lies: within the run, and in none of its fingerprints."""
        return self.traced.folder / "traces" / self.name

    @property
    def stage_timeout_s(self) -> int:
        """As the run's."""
        return self.traced.stage_timeout_s

    @property
    def stall_timeout_s(self) -> int:
        """As the run's."""
        return self.traced.stall_timeout_s

    @property
    def models(self) -> list[str]:
        """No model of a hub: the policy lies in the run, or where its first stage found it."""
        return []

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the result."""
        chosen = self.model_dump(mode="json", include={"prompt_id", "mode", "sample", "parameters"})
        return {**chosen, "train": deciding(self.traced.train), "seed": self.traced.seed}
