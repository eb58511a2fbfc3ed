"""What `make fast` leaves out, and what it holds the rest to."""

import subprocess

import pytest

from tests.points import Points


def test_a_test_without_the_mark_may_start_no_process() -> None:
    with pytest.raises(pytest.fail.Exception, match="mark this test `process`"):
        subprocess.run(["true"], check=True)


@pytest.mark.process
def test_a_test_with_the_mark_may_start_one() -> None:
    subprocess.run(["true"], check=True)


def test_what_a_fixture_starts_marks_the_tests_that_use_it(points: Points, request: pytest.FixtureRequest) -> None:
    assert request.node.get_closest_marker("process") is not None
