"""What the gate decided of a round, as it stands in the manifest of the round's `decide` stage."""

from dataclasses import dataclass

from data.store import Manifest


@dataclass(frozen=True)
class Decision:
    """Whether a round was promoted, and the sentence that says why."""

    promoted: bool
    reason: str

    @property
    def outputs(self) -> dict[str, str]:
        """The decision as the `outputs` of a manifest."""
        return {"promoted": "yes" if self.promoted else "no", "reason": self.reason}

    @staticmethod
    def of(manifest: Manifest) -> "Decision":
        """The decision that a manifest of a `decide` stage holds."""
        return Decision(manifest.outputs["promoted"] == "yes", manifest.outputs["reason"])
