"""What each worker on a Ray cluster asks for, by what its machines offer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data.errors import BadInput
from pco.config.reward_training import RewardTraining
from pco.config.run import RunConfig


@dataclass(frozen=True)
class Room:
    """What each worker asks Ray for."""

    cores: int
    gpus: int


def room(config: RunConfig | RewardTraining, nodes: Sequence[Mapping[str, float]]) -> Room:
    """As many cores for each worker as its machines offer, beside the GPUs that it needs.

    `nodes` hold the resources of each machine, as Ray names them. Raises BadInput when not all workers fit.
    """
    executor = config.executor
    gpus = executor.gpus_per_worker
    if gpus is None:
        has_gpus = any(node.get("GPU") for node in nodes)
        gpus = (config.engine.tensor_parallel if isinstance(config, RunConfig) else 1) if has_gpus else 0
    most = int(max((node.get("CPU", 0) for node in nodes), default=0))
    for cores in range(most, 0, -1):
        if sum(_fitting(node, cores, gpus) for node in nodes) >= executor.workers:
            return Room(cores, gpus)
    total = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
    raise BadInput(
        f"executor: {executor.workers} workers with {gpus} GPU(s) and at least one core each do not fit the "
        f"{len(nodes)} machine(s) of the Ray cluster at {executor.address}, which offer {total['GPU']:.0f} GPU(s) and "
        f"{total['CPU']:.0f} core(s) in all. Lower executor.workers or executor.gpus_per_worker, or add machines."
    )


def _fitting(node: Mapping[str, float], cores: int, gpus: int) -> int:
    by_cores = int(node.get("CPU", 0)) // cores
    return min(by_cores, int(node.get("GPU", 0)) // gpus) if gpus else by_cores
