"""A person's answer on a round that the gate refused (`gate.otherwise: ask`): a file beside the round's decision."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from data import store
from data.errors import BadInput, CorruptArtifact
from pco.config.run import RunConfig
from pco.stage import Stage

_FILE = "answer.json"


@dataclass(frozen=True)
class Answer:
    """What a person said of a refused round."""

    approve: bool
    comment: str = ""
    by: str = ""

    def told(self) -> str:
        """For the round's verdict."""
        who = f" by {self.by}" if self.by else ""
        comment = f" ({self.comment})" if self.comment else ""
        return f"asked, it was {'approved' if self.approve else 'refused for good'}{who}{comment}"


def read(stage: Stage) -> Answer | None:
    """The answer on the round of a `decide` stage, None if there is none yet.

    Raises CorruptArtifact for a file that holds none.
    """
    path = _path(stage)
    if not path.exists():
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return Answer(bool(raw["approve"]), str(raw["comment"]), str(raw["by"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptArtifact(f"{path}: holds no answer ({error!r}). Remove it, then answer anew.") from error


def write(stage: Stage, answer: Answer) -> None:
    """Keep an answer; it counts once the stage is run again.

    Raises BadInput when the round is decided already.
    """
    if store.read_manifest(stage.folder) is not None:
        raise BadInput(f"{stage.title}: is decided already; an answer would change nothing.")
    store.write_text(_path(stage), json.dumps(asdict(answer), indent=1))


def how_to(config: RunConfig) -> str:
    """What a person who is asked can do."""
    run = config.run
    return f"It is for you to say: `pco answer {run} approve` or `pco answer {run} refuse`, then `pco resume {run}`."


def _path(stage: Stage) -> Path:
    return stage.folder / _FILE
