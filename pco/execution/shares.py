"""What each worker on this machine may use: a group of its GPUs, or a share of its cores."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from data.errors import BadInput
from pco import hardware
from pco.config.executor import Execution
from pco.config.reward_training import RewardTraining
from pco.config.run import RunConfig


@dataclass(frozen=True)
class Share:
    """Of one worker: what its environment says, and the cores that it is held to; none where it may use all."""

    environment: Mapping[str, str]
    cores: tuple[int, ...] = ()


def shares(config: RunConfig | RewardTraining) -> dict[int, Share]:
    """The share of each worker by its number. Where there are more workers than cores some share one.

    Raises BadInput when the workers need more GPUs than there are.
    """
    executor, needed = config.executor, gpus_needed(config)
    cores, workers = hardware.cores(), executor.workers
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, len(cores) // workers)))
    # Cores are given by the process's affinity, from which vLLM also takes the memory that is near.
    environment = {"OMP_NUM_THREADS": threads, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    if needed:
        groups = _gpu_groups(executor, needed)
        named = ({**environment, "CUDA_VISIBLE_DEVICES": ",".join(group)} for group in groups)
        return dict(enumerate(map(Share, named)))
    if executor.gpus_per_worker == 0:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return {worker: Share(environment, _of(cores, worker, workers)) for worker in range(workers)}


def gpus_needed(config: RunConfig | RewardTraining) -> int:
    """How many GPUs each worker has; 0 where it computes on cores."""
    named = config.executor.gpus_per_worker
    if named is None and hardware.is_for_amd():
        raise BadInput(
            "executor.kind: `pool` divides NVIDIA's GPUs among workers, and torch is for AMD's here: every worker "
            "would take all. Set executor.kind=local, or executor.gpus_per_worker=0 for workers on cores."
        )
    if named is not None:
        return named
    return (config.engine.tensor_parallel if isinstance(config, RunConfig) else 1) if hardware.gpus() else 0


def _gpu_groups(executor: Execution, needed: int) -> list[list[str]]:
    gpus = hardware.gpus()
    if executor.workers * needed > len(gpus):
        raise BadInput(
            f"executor: {executor.workers} workers with {needed} GPU(s) each need {executor.workers * needed}, and "
            f"this machine offers {len(gpus)}. At most {len(gpus) // needed} workers fit (executor.workers); with "
            "executor.gpus_per_worker=0 they compute on cores."
        )
    return [gpus[worker * needed : (worker + 1) * needed] for worker in range(executor.workers)]


def _of(cores: list[int], worker: int, workers: int) -> tuple[int, ...]:
    """Neighbouring cores, as many for each worker as for any other or one more."""
    first, last = (len(cores) * number // workers for number in (worker, worker + 1))
    return tuple(cores[first:last]) or (cores[worker % len(cores)],)
