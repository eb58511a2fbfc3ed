"""The `executor` section of the config: by how many processes a stage's shards are made, and where."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pco.config.section import Section


class Execution(Section):
    """Which processes make the shards of a stage. No result depends on it, so it may change at every resume."""

    kind: Literal["local", "pool", "ray"] = "local"
    """`local`: one process a stage. `pool`: several worker processes on this machine share the shards of `generate`,
    `score`, `refer` and `evaluate`. `ray`: workers on the machines of a Ray cluster do; docs/cluster.md."""
    workers: int = Field(1, ge=1)
    """How many workers."""
    gpus_per_worker: int | None = Field(None, ge=0)
    """GPUs of each worker: by default as many as `engine.tensor_parallel` where the machine has GPUs; 0 uses none."""
    address: str = Field("auto", pattern=r"^(auto|[^/\s:]+:\d+)$")
    """The Ray cluster: `auto` for the one that this machine is a node of, or its head as HOST:PORT (`ray` only)."""

    @model_validator(mode="after")
    def _settings_are_of_its_kind(self) -> Self:
        if self.kind == "local" and (self.workers > 1 or self.gpus_per_worker is not None):
            raise ValueError("`workers` and `gpus_per_worker` are not of kind: local; add executor.kind=pool")
        if self.kind != "ray" and self.address != "auto":
            raise ValueError("`address` is of kind: ray; add executor.kind=ray")
        return self
