"""Events of a stage process survive the way through its log, and log text never becomes one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pco import progress
from pco.progress import Failure, Progress

events = st.builds(Progress, st.integers(0), st.integers(0), st.text(), st.text()) | st.builds(
    Failure, st.text(), st.text()
)


@given(data=st.data())
def test_an_event_is_one_line_that_reads_back_equal_and_cut_anywhere_is_log_text(data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda text, flush: lines.append(text))
        event = data.draw(events)
        progress.send({"progress" if isinstance(event, Progress) else "failure": vars(event)})
    (line,) = lines
    assert "\n" not in line
    assert progress.parse(line) == event
    assert progress.parse(line[: data.draw(st.integers(0, len(line) - 1))]) is None


@given(line=st.text())
def test_ordinary_text_is_no_event(line: str) -> None:
    assert progress.parse(line) is None


@pytest.mark.parametrize(
    "body",
    ["", "[]", "3", '{"other": {}}', '{"progress": 3}', '{"progress": {"done": 1}}', '{"failure": {"x": 1}}', "nul"],
)
def test_a_marked_line_that_is_no_event_is_log_text(body: str, capsys: pytest.CaptureFixture[str]) -> None:
    progress.send({"failure": {"kind": "PCOError", "message": "whole"}})
    mark, brace, event = capsys.readouterr().out.rstrip("\n").partition("{")
    assert progress.parse(mark + brace + event) == Failure("PCOError", "whole")
    assert progress.parse(f"{mark}{body}") is None


def test_the_end_is_always_reported_and_what_is_before_it_only_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([10.0, 10.1, 10.2, 10.6, 10.7, 10.8])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(progress, "_last_sent", 0.0)
    for done in range(1, 7):
        progress.report(Progress(done, 6, "rows"))
    told = [progress.parse(line) for line in capsys.readouterr().out.split("\n")]
    assert [event.done for event in told if isinstance(event, Progress)] == [1, 4, 6]
