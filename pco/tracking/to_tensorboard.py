"""TensorBoard: event files in a folder for the run and one for each round.

They lie in TENSORBOARD_LOGGING_DIR/RUN, or else in the folder `tensorboard` of the run.
"""

import os
from collections.abc import Callable
from pathlib import Path

from pco.tracking.facts import Part, Point, child
from pco.tracking.tracked import Tracked


def send(run: Tracked, parts: list[Part], note: Callable[[Part], None]) -> None:
    """Write event files; `note` is called for each part when all are written."""
    root = os.environ.get("TENSORBOARD_LOGGING_DIR")
    folder = Path(root) / run.name if root else run.folder / "tensorboard"
    _write(folder, [point for part in parts for point in part.values], text="" if run.sent else _table(run))
    for number in sorted({part.round for part in parts if part.steps}):
        steps = [point for part in parts if part.round == number for point in part.steps]
        _write(folder / child(number), steps)
    for part in parts:
        note(part)


def _write(folder: Path, points: list[Point], *, text: str = "") -> None:
    """A new event file in the folder, for TensorBoard reads all files of a folder as one run, in the order of time."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.plugins.scalar.summary_v2 import scalar_pb
    from tensorboard.plugins.text.summary_v2 import text_pb
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder))
    if text:
        writer.add_event(Event(summary=text_pb("settings", text)))
    for point in points:
        writer.add_event(Event(wall_time=point.time, step=point.step, summary=scalar_pb(point.name, point.value)))
    writer.close()


def _table(run: Tracked) -> str:
    rows = "\n".join(f"| {key} | `{value}` |" for key, value in run.settings.items())
    return f"| setting | value |\n|---|---|\n{rows}"
