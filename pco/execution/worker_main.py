"""The main program of every stage process: `python -m pco.execution.worker_main STAGE.json`.

Training first becomes DeepSpeed's launcher, which starts this program again once per rank.
"""

import base64
import ctypes
import faulthandler
import json
import os
import signal
import socket
import sys
import traceback
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from data.errors import PCOError
from pco import progress
from pco.execution.process_group import STACKS_SIGNAL
from pco.progress import Failure
from pco.stage import PARENT, Stage

FAILED = 3  # exit status after a failure that was told to the parent
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Run the stage described in the file named last on the command line."""
    _die_with_parent()
    faulthandler.register(STACKS_SIGNAL)
    path = sys.argv[-1]
    stage = Stage.from_json(Path(path).read_text(encoding="utf-8"))
    try:
        if stage.spec.distributed and "RANK" not in os.environ:
            _become_deepspeed_launcher(path, stage.config.train.processes)
        # Its imports are heavy and belong to this kind of process alone.
        import_module(stage.module).run(stage)
    except PCOError as error:
        _fail(error)
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        traceback.print_exc()
        _fail(_out_of_memory(stage, error))
    # All is on disk. Taking an engine apart object by object would cost seconds for nothing.
    sys.stdout.flush()
    os._exit(0)


def _fail(error: PCOError) -> NoReturn:
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
