"""What an examination finds."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "fault", "skipped"]
Seen = tuple[Verdict, str]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    name: str
    verdict: Verdict
    told: str
