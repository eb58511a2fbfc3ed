"""A run's name may hold the moment at which it is due."""

import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import BadInput
from pco.config import names
from pco.config.run import load
from pco.runs.folder import opened, read_config
from tests import builders

MOMENTS = st.datetimes(datetime(1990, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
RUN_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")


@given(MOMENTS, ZONES)
def test_a_name_is_a_function_of_the_moment_wherever_that_is_told(due: datetime, zone: timezone) -> None:
    name = names.resolved("n-{date}-{time}", due)
    assert name == names.resolved("n-{date}-{time}", due.astimezone(zone)) == f"n-{due:%Y-%m-%d-%H%M%S}"
    assert RUN_NAME.match(name)


@given(MOMENTS, st.integers(1, 10**9))
def test_moments_a_second_apart_or_more_have_names_of_their_own_in_order(due: datetime, later_s: int) -> None:
    both = [names.resolved("{date}.{time}", at) for at in (due, due + timedelta(seconds=later_s))]
    assert both[0] < both[1]


@pytest.mark.parametrize("name", ["n-{day}", "n-{date", "n-date}", "n-{}", "{date}{Time}", "{{date}}"])
def test_other_braces_are_refused_with_what_is_allowed(name: str) -> None:
    with pytest.raises(BadInput, match=r"run: .*holds .*Allowed in braces are `\{date\}`.*`\{time\}`"):
        names.resolved(name, datetime.now(UTC))
    assert not re.match(names.PATTERN, name)


@pytest.mark.parametrize("name", ["nightly", "nightly-{date}", "{date}", "a{date}b.{time}"])
def test_the_form_takes_what_the_config_takes(name: str) -> None:
    assert re.match(names.PATTERN, name)


def test_a_config_is_named_when_it_is_loaded_and_keeps_its_name(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    raw = builders.raw_config(tmp_path)
    file.write_text(
        f"run: night-{{date}}\nruns_dir: {raw['runs_dir']}\npolicy: {raw['policy']}\nprompts: {raw['prompts']}"
    )
    config = load(file, due=datetime(2026, 1, 31, 22, tzinfo=UTC))
    assert config.run == "night-2026-01-31"
    with opened(config):
        assert read_config(config.folder).run == "night-2026-01-31"
    assert load(file).run == f"night-{datetime.now(UTC):%Y-%m-%d}"
    assert load(file, ["run=at-{time}"], due=datetime(2026, 1, 31, 22, tzinfo=UTC)).run == "at-220000"
