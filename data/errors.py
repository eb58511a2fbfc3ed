"""Every error a user can meet. Each message says what was wrong, where, what was expected and what to do."""


class PCOError(Exception):
    """Base of all errors raised on purpose; the command line prints its message without a traceback."""


class BadInput(PCOError):
    """A config, data file, model or environment that cannot work. Retrying cannot help."""


class CorruptArtifact(PCOError):
    """A file of a run is missing, truncated, altered, or of another schema than its manifest says."""


class RunConflict(PCOError):
    """A run or stage on disk belongs to another config; nothing is overwritten."""


class StageFailed(PCOError):
    """A stage process ended without finishing its stage; what it committed is kept."""


class AwaitsAnswer(PCOError):
    """The gate refused a round and is to ask a person, who has not answered yet."""


class BudgetSpent(PCOError):
    """A judge would cost more than was allowed; its answers so far are kept."""


class Skipped(PCOError):
    """A run of a series does not begin: another one is at work, or there is nothing new to learn from. No failure."""
