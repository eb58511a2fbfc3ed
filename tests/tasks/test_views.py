"""What a person sees of a stage."""

import io

import pytest
from rich.console import Console

from pco.progress import Progress
from tasks import views
from tasks.views import Left


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations_read_as_people_say_them(seconds: float, said: str) -> None:
    assert views.duration(seconds) == said


def test_progress_in_words_holds_counts_eta_and_note() -> None:
    told = views.describe(Progress(3.7, 12, "steps", "519 tok/s"), Left(90, 200))
    assert told == "3/12 steps, ETA 1 min 30 s, whole run about 3 min 20 s, 519 tok/s"
    assert views.describe(Progress(3, 12, "steps"), Left()) == "3/12 steps"


def test_a_terminal_keeps_one_line_per_finished_stage_and_marks_the_failed() -> None:
    output = io.StringIO()
    view = views.Terminal(Console(file=output, width=100))
    view.begin("round 1/2 · generate")
    view.advance(Progress(5, 10, "completions"), Left(3.0))
    view.end("512 completions", ok=True)
    view.begin("round 1/2 · train")
    view.end("killed [SIGKILL]", ok=False)
    lines = [line.strip() for line in output.getvalue().splitlines() if line.strip()]
    assert lines == ["✓ round 1/2 · generate     512 completions", "✗ round 1/2 · train        killed [SIGKILL]"]


def test_stages_show_in_the_view_of_the_block_they_run_in_and_as_lines_elsewhere() -> None:
    terminal = views.Terminal(Console(file=io.StringIO()))
    with views.shown_in(terminal):
        assert views.current() is terminal
    assert isinstance(views.current(), views.Lines)
