"""Seeds derived from what they are for, so that no result depends on where a run was cut or how it was split."""

import hashlib


def seed_of(*parts: object) -> int:
    """A seed in [0, 2^31) from whatever identifies the random choice, e.g. run seed, round, prompt and sample."""
    return int(hashlib.sha256(":".join(map(str, parts)).encode()).hexdigest()[:8], 16) & 0x7FFFFFFF
