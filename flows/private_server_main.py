"""The process of a private Prefect server: `python -P private_server_main.py APP PORT`.

It imports nothing of this project, so that whatever stands first on the import path, it starts.
"""

import ctypes
import os
import signal
import sys

import uvicorn

OWNER = "PCO_SERVER_OWNER"  # in the environment: the process that started it
_PR_SET_PDEATHSIG = 1


def main(app: str, port: int) -> None:
    """Serve until told to end, or until the owner ends, however that happens (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(os.environ[OWNER]):  # it died before we could ask
            sys.exit(1)
    uvicorn.run(app, factory=True, host="127.0.0.1", port=port, log_level="error", lifespan="on")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
