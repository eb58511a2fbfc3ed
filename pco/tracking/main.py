"""`python -m pco.tracking.main FOLDER`: tell the trackers of a run what is new, in a process of its own.

Their libraries take seconds to import, and a tracker that is gone may keep one waiting: neither holds up the run.
"""

import sys
from pathlib import Path

from data.errors import PCOError
from pco.runs.folder import read_config
from pco.tracking.tracked import sync


def main() -> None:
    """Print a line for each tracker that could not be told; then end with status 1."""
    config = read_config(Path(sys.argv[1]))
    failed = False
    for tracker in config.track:
        try:
            sync(config, tracker)
        except PCOError as error:
            failed = True
            print(error, flush=True)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
