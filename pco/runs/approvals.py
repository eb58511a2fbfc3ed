"""A person's answer on a round that the gate refused (`gate.otherwise: ask`): a file beside the round's decision."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from data import files, store
from data.errors import BadInput, CorruptArtifact
from pco.config.run import RunConfig
from pco.stage import Stage

_FILE = "answer.json"


@dataclass(frozen=True)
class Answer:
    """A person's answer on a refused round."""

    approve: bool
    comment: str = ""
    by: str = ""

    def summary(self) -> str:
        """The answer in words, for the reason of the round's decision."""
        who = f" by {self.by}" if self.by else ""
        comment = f" ({self.comment})" if self.comment else ""
        return f"asked, it was {'approved' if self.approve else 'refused for good'}{who}{comment}"


def read(stage: Stage) -> Answer | None:
    """The answer on the round of a `decide` stage; None if there is none yet.

    Raises CorruptArtifact for a file that holds none.
    """
    path = _path(stage)
    if not path.exists():
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return Answer(bool(raw["approve"]), str(raw["comment"]), str(raw["by"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptArtifact(f"{path}: holds no answer ({error!r}). Remove it, then answer again.") from error


def write(stage: Stage, answer: Answer) -> None:
    """Keep an answer; it takes effect when the stage is run again.

    Raises BadInput when the round is decided already.
    """
    if store.read_manifest(stage.folder) is not None:
        raise BadInput(f"{stage.title}: is decided already; an answer would change nothing.")
    files.write_text(_path(stage), json.dumps(asdict(answer), indent=1))


def how_to(config: RunConfig) -> str:
    """How a person answers."""
    run = config.run
    return f"Decide with `pco answer {run} approve` or `pco answer {run} refuse`, then `pco resume {run}`."


def _path(stage: Stage) -> Path:
    return stage.folder / _FILE
