"""The main program of every stage process: `python -m pco.execution.worker_main STAGE.json`.

Training first becomes DeepSpeed's launcher, which starts this program again once per rank. Where workers make a stage's
shards, its process starts this program again once per worker: `... --worker FILE_NUMBER STAGE.json`.
"""

import base64
import ctypes
import faulthandler
import importlib.util
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from data.errors import BadInput, PCOError
from pco import progress
from pco.execution import pool, shares
from pco.execution.driver import Crew, Driver
from pco.execution.process_group import STACKS_SIGNAL
from pco.execution.serving import Serving
from pco.progress import Failure
from pco.sharding import Sharding, in_order
from pco.stage import PARENT, Stage

FAILED = 3  # exit status after a failure that was told to the parent
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Run the stage described in the file named last on the command line."""
    _die_with_parent()
    _keep_to_cores()
    faulthandler.register(STACKS_SIGNAL)
    path = sys.argv[-1]
    stage = Stage.from_json(Path(path).read_text(encoding="utf-8"))
    serving = _serving()
    try:
        if stage.spec.distributed and "RANK" not in os.environ:
            _become_deepspeed_launcher(path, stage.config.train.processes)
        with nullcontext(serving) if serving else _sharding(stage) as sharding:
            # Its imports are heavy and belong to this kind of process alone.
            import_module(stage.module).run(replace(stage, sharding=sharding))
    except PCOError as error:
        _fail(error, serving)
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        traceback.print_exc()
        _fail(_out_of_memory(stage, error), serving)
    # All is on disk. Taking an engine apart object by object would cost seconds for nothing.
    sys.stdout.flush()
    os._exit(0)


def _serving() -> Serving | None:
    """The driver's end of a worker; None where this process is none."""
    if pool.OPTION not in sys.argv:
        return None
    number = int(sys.argv[sys.argv.index(pool.OPTION) + 1])
    os.set_inheritable(number, False)  # one that it starts would hold the connection of a worker that is dead
    return Serving(Connection(number))


@contextmanager
def _sharding(stage: Stage[Any]) -> Iterator[Sharding]:
    """How the shards of a stage are made; no worker outlives the block."""
    if not stage.spec.workers or stage.config.executor.kind == "local":
        yield in_order
        return
    with _crew(stage) as crew:
        yield Driver(crew, stage.config.executor.workers)


def _crew(stage: Stage[Any]) -> AbstractContextManager[Crew]:
    if stage.config.executor.kind == "pool":
        return pool.Pool(stage, shares.shares(stage.config))
    if importlib.util.find_spec("ray") is None:
        raise BadInput(
            "executor.kind: Ray is not installed where stages run. `pip install 'pco-pipeline[ray]'` on every machine "
            "of the cluster, or set executor.kind to pool or local."
        )
    from pco.execution.ray_crew import RayCrew

    return RayCrew(stage)


def _keep_to_cores() -> None:
    cores = os.environ.pop(pool.CORES, "")
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(map(int, cores.split(","))))


def _fail(error: PCOError, serving: Serving | None) -> NoReturn:
    if serving:
        serving.fail(Failure.of(error))
    else:
        progress.send({"failure": asdict(Failure.of(error))})
    sys.exit(FAILED)


def _is_out_of_memory(error: Exception) -> bool:
    """Python's, CUDA's and torch's way of saying it on a CPU."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "can't allocate memory" in str(error)


def _out_of_memory(stage: Stage[Any], error: Exception) -> PCOError:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return PCOError(f"{stage.title}: out of memory ({reason}). {stage.spec.out_of_memory}")


def _die_with_parent() -> None:
    """Ask the kernel (Linux) to end this process when its parent dies, however that happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(os.environ.get(PARENT, os.getppid())):  # it died before we could ask
            sys.exit(FAILED)


def _become_deepspeed_launcher(path: str, processes: int) -> None:
    """Replace this process: the launcher keeps the process id and the promise to die with the parent."""
    world = base64.urlsafe_b64encode(json.dumps({"localhost": list(range(processes))}).encode()).decode()
    launcher = [sys.executable, "-m", "deepspeed.launcher.launch", f"--world_info={world}"]
    options = [f"--master_port={_free_port()}", "--no_local_rank", "--module", "--quiet"]
    os.environ[PARENT] = str(os.getpid())  # of the ranks
    os.execv(sys.executable, [*launcher, *options, "pco.execution.worker_main", path])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
