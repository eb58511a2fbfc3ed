"""Rows of a kind out of one source, or a mixture of several in given shares."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from data.errors import BadInput
from data.importing import Outcome, Reader, Request, content_key, open_request

Row = dict[str, Any]  # of the schema `IMPORTED[kind]`
SHARES = "more than its share of the mixture"
LIMIT = "beyond the limit"


@dataclass(frozen=True)
class Part:
    """A source of a mixture, and its share in it relative to the weights of the others; without one, all of it."""

    request: Request
    weight: float | None = None


def read(request: Request, limit: int | None = None) -> tuple[list[Row], Outcome]:
    """The first so many rows of a source that can be kept, in their order, and what became of the others.

    Raises BadInput.
    """
    reader = Reader(open_request(request))
    rows = list(reader.rows())
    return rows[:limit], _without(reader.outcome(), {LIMIT: len(rows) - len(rows[:limit])})


def mix(parts: Sequence[Part], seed: int, limit: int | None = None) -> tuple[list[Row], list[Outcome]]:
    """The first so many rows of a mixture, and what became of those of each part.

    Which rows of a part are taken, and in which order, is drawn by `seed` and what the rows say; so it does not depend
    on the order of the rows in a file. The parts are interleaved: the first rows of a mixture have its shares, too. A
    row that is in several parts, or several times in one, belongs to the first.

    Raises BadInput naming the part that cannot be read, or would give no row.
    """
    seen: dict[bytes, str | None] = {}
    drawn: list[list[Row]] = []
    outcomes: list[Outcome] = []
    for part in parts:
        reader = Reader(open_request(part.request), seen)
        drawn.append(sorted(reader.rows(), key=lambda row: _rank(row, seed)))
        outcomes.append(reader.outcome())
    counts = quotas([len(rows) for rows in drawn], [part.weight for part in parts])
    for part, count, rows in zip(parts, counts, drawn, strict=True):
        if not count:
            raise BadInput(
                f"{part.request.source}: the mixture would have none of its {len(rows):,} rows. Its weight of "
                f"{part.weight} is too small beside the others: raise it, or leave the source out."
            )
    order = interleaved(counts)[:limit]
    taken = Counter(order)
    iterators = [iter(rows) for rows in drawn]
    return [next(iterators[index]) for index in order], [
        _without(outcome, {SHARES: len(drawn[index]) - count, LIMIT: count - taken[index]})
        for index, (outcome, count) in enumerate(zip(outcomes, counts, strict=True))
    ]


def quotas(available: Sequence[int], weights: Sequence[float | None]) -> list[int]:
    """How many rows of each part a mixture takes: as many as there are for shares in proportion to the weights.

    The part that is short of rows for its weight is used up. Shares are exact but for less than a row of each part.
    Without weights all rows are taken.
    """
    shares = [Fraction(str(weight)) for weight in weights if weight is not None]
    if len(shares) < len(available):
        return list(available)
    size = min(count / share for count, share in zip(available, shares, strict=True))
    return [int(share * size) for share in shares]


def interleaved(counts: Sequence[int]) -> list[int]:
    """The part of each place of a mixture. Any beginning has the mixture's shares, but for fewer rows than parts."""
    places = [((2 * i + 1) / count, part) for part, count in enumerate(counts) for i in range(count)]
    return [part for _, part in sorted(places)]


def _rank(row: Row, seed: int) -> bytes:
    return hashlib.sha256(str(seed).encode() + content_key(row)).digest()


def _without(outcome: Outcome, left_out: Mapping[str, int]) -> Outcome:
    more = {reason: count for reason, count in left_out.items() if count}
    return replace(outcome, dropped={**outcome.dropped, **more})
