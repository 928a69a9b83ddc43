"""Samples products when there are more than the limits allow: pseudo-randomly, but the same ones every time.

Each item has a rank, a hash of the seed and its id. The lowest ranks of each product type are taken, and of these the lowest
ranks overall. So an item that is added later pushes out at most one other, and the order of the files does not matter.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

from data_prep.records import Rejected
from data_prep.settings import PrepareSettings


class Candidate(NamedTuple):
    """A product that qualifies; it is chosen unless a limit excludes it."""

    item_id: str
    product_type: str
    where: str  # file and line of its listing
    packed: bytes  # the `Product` as JSON: a third of the memory of the object


def choose(
    candidates: list[Candidate], settings: PrepareSettings, reject: Callable[[Rejected], None]
) -> list[Candidate]:
    """Apply ``max_per_product_type``, then ``max_items``; reject the rest. The order of the candidates is kept."""
    if settings.max_per_product_type is not None:
        by_type: dict[str, list[Candidate]] = defaultdict(list)
        for candidate in candidates:
            by_type[candidate.product_type].append(candidate)
        outside: set[str] = set()
        for same_type in by_type.values():
            outside |= _beyond(same_type, settings.max_per_product_type, settings.seed)
        candidates = _without(candidates, outside, "over_max_per_product_type", reject)
    if settings.max_items is not None:
        outside = _beyond(candidates, settings.max_items, settings.seed)
        candidates = _without(candidates, outside, "over_max_items", reject)
    return candidates


def _rank(seed: int, item_id: str) -> bytes:
    """Eight bytes that depend only on the seed and the item."""
    return hashlib.blake2b(f"{seed}:{item_id}".encode(), digest_size=8).digest()


def _beyond(candidates: list[Candidate], limit: int, seed: int) -> set[str]:
    """The items beyond the ``limit`` lowest ranks."""
    if len(candidates) <= limit:
        return set()
    return set(sorted((c.item_id for c in candidates), key=lambda item_id: _rank(seed, item_id))[limit:])


def _without(
    candidates: list[Candidate], outside: set[str], reason: str, reject: Callable[[Rejected], None]
) -> list[Candidate]:
    chosen = []
    for candidate in candidates:
        if candidate.item_id in outside:
            kind = candidate.product_type or "no type"
            reject(Rejected(candidate.item_id, reason, f"item {candidate.item_id} ({kind}) at {candidate.where}"))
        else:
            chosen.append(candidate)
    return chosen
