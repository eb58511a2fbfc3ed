"""The results of an examination."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "fault", "skipped"]
Result = tuple[Status, str]  # status and message


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    name: str
    status: Status
    message: str
