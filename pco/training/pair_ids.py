"""What a training calls its pairs; apart from `batches`, since light processes ask, too."""

from collections.abc import Mapping
from typing import Any


def pair_id(row: Mapping[str, Any]) -> str:
    """What identifies a pair among a round's own and replayed ones; the id of a replayed one begins with its round."""
    round_prefix = f"{row['round']}:" if row.get("round") is not None else ""
    return f"{round_prefix}{row['prompt_id']}:{row['chosen_sample']}:{row['rejected_sample']}"
