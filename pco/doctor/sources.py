"""What becomes of the data that a config names where they are, and of right answers that are none."""

from collections.abc import Iterator

from pco.doctor import reading
from pco.doctor.finding import Result
from pco.doctor.inputs import Inputs


def examine(inputs: Inputs) -> Iterator[Result]:
    """What became of the rows of each source; a warning of one that may have other rows tomorrow."""
    for line in inputs.told():
        yield "ok", line
    for place, outcome in inputs.sources.items():
        if reading.unpinned(outcome):
            yield (
                "warning",
                f"prompts.{place}: {outcome.request.source} is read as of today. Another run may read other rows: "
                f"`revision: {outcome.commit}` pins them",
            )
