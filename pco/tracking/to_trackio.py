"""trackio: a group with a run for the curves over rounds, and one for each round.

TRACKIO_PROJECT (`pco` if not set), TRACKIO_DIR, TRACKIO_SPACE_ID and TRACKIO_SERVER_URL are its usual variables.
"""

import os
from collections.abc import Callable, Sequence

from pco.tracking.facts import Part, Point, child
from pco.tracking.tracked import Tracked


def send(run: Tracked, parts: list[Part], note: Callable[[Part], None]) -> None:
    """Tell trackio; `note` is called after each part."""
    for part in parts:
        _log(run, "", part.values)
        _log(run, child(part.round), part.steps)
        note(part)


def _log(run: Tracked, name: str, points: Sequence[Point]) -> None:
    import trackio

    if not points:
        return
    trackio.init(
        project=os.environ.get("TRACKIO_PROJECT", "pco"),
        name=f"{run.name}-{run.id[:8]}" + f"-{name}" * bool(name),
        group=run.name,
        config=run.settings,
        resume="allow",
        space_id=os.environ.get("TRACKIO_SPACE_ID"),
        server_url=os.environ.get("TRACKIO_SERVER_URL"),
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    rows: dict[int, dict[str, float]] = {}
    for point in points:
        rows.setdefault(point.step, {})[point.name] = point.value
    for number, row in rows.items():
        trackio.log(row, step=number)
    trackio.finish()
