"""Other processes for the tests: killed at a chosen moment, or without root's privileges."""

import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
_NOBODY = 65534

# Kills its own process, with no chance to clean up, in place of the n-th call that changes a folder or waits for the
# disk.
_DEADLY = """
import os, signal
left = {calls}
def deadly(real):
    def call(*args, **kwargs):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call
for name in ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir"):
    setattr(os, name, deadly(getattr(os, name)))
"""


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that can import the package and the tests."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def run_until_call(code: str, calls: int) -> bool:
    """Run code that is killed after so many calls that change a folder; whether it was killed."""
    imports, _, rest = code.partition("\n\n")
    done = run_python(f"{imports}\n{_DEADLY.format(calls=calls)}\n{rest}")
    assert done.returncode in (0, -9), done.stderr
    return done.returncode == -9


def as_nobody(action: Callable[[], None]) -> None:
    """Do something without root's privileges, which ignore permissions. Raises AssertionError if it raises."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(_NOBODY)
                os.setuid(_NOBODY)
            action()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "see the traceback on standard error"
