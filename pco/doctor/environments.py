"""Whether the environments of flows and stages, where they are two, go together."""

from collections.abc import Iterator

from data.errors import BadInput
from pco import installed
from pco.doctor.finding import Result
from pco.doctor.inputs import Inputs


def examine(_: Inputs) -> Iterator[Result]:
    """Whether both have the same pco, and read and write with the same versions of other packages."""
    if not installed.is_apart():
        yield "ok", "stages run in the environment of the flow"
        return
    here, there = installed.of_this_process(), installed.of_stages()
    if here.code != there.code:
        raise BadInput(
            f"{installed.STAGE_PYTHON}: the pco of stages ({there.folder}) is not that of the flow ({here.folder}). "
            "Install the same version in both environments."
        )
    if differing := installed.differences():
        yield (
            "warning",
            f"flow and stages have different versions: {'; '.join(differing)}. What the flow checks may not be what a "
            "stage does: install the same ones",
        )
    yield "ok", f"stages run under {installed.python()} (Python {there.python}), which has the same pco"
