"""The control: which questions are asked again with a wrong image, and which image that is.

A model that answers as well without the right image has not looked. A sample of the questions is asked with a gray image, and
with the image of another product: one of the same product type, so that only what is particular to the product is wrong. A
product that has the same answer to a question of the same type is passed over, since its image would be as right (all lamps
are lamps); then a product of another type is taken.

Everything is decided by hashes of image ids, so it depends on nothing but the split.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence

from data_prep.records import Example

GRAY = "\0gray"  # an image path that no file can have, since paths end at NUL
TRIES = 5  # products of the same type, and other types, that are looked at for a different answer


def sample(examples: Sequence[Example], count: int) -> list[Example]:
    """The first ``count`` questions by hash of their image, or a few more, so that those of an image stay together."""
    by_image: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        by_image[example.image_id].append(example)
    chosen: list[Example] = []
    for image in sorted(by_image, key=_hash):
        if len(chosen) >= count:
            break
        chosen += by_image[image]
    return chosen


def with_gray(asked: Sequence[Example]) -> list[Example]:
    """The questions about a gray image."""
    return [dataclasses.replace(example, image_path=GRAY) for example in asked]


def with_other_images(asked: Sequence[Example], examples: Sequence[Example]) -> list[Example]:
    """The questions about images of other products, those about one image together; none where there is no other image.

    Args:
        asked: the questions.
        examples: the whole split, whose images are shown.
    """
    pool = _Pool(examples)
    moved = []
    for example in asked:
        others = list(pool.others(example))
        other = next((o for o in others if not pool.same_answer(o, example)), others[0] if others else None)
        if other is not None:
            shown = {name: getattr(other, name) for name in ("image_id", "image_path", "image_sha256")}
            moved.append(dataclasses.replace(example, **shown))
    return sorted(moved, key=lambda e: (e.image_path, e.id))


class _Pool:
    """The images of a split by product type, in rings: the next image in a ring is never the image itself."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._first: dict[str, Example] = {}  # by image id
        self._answers: dict[str, set[tuple[str, str]]] = defaultdict(set)
        for example in examples:
            self._first.setdefault(example.image_id, example)
            self._answers[example.image_id].add((example.question_type, example.answer))
        self._rings: dict[str, list[str]] = defaultdict(list)
        for image in sorted(self._first, key=_hash):
            self._rings[self._first[image].product_type].append(image)
        self._types = sorted(self._rings, key=_hash)
        self._place = {image: place for ring in self._rings.values() for place, image in enumerate(ring)}

    def others(self, example: Example) -> Iterator[Example]:
        """Images to show instead of the example's, the best first."""
        kind, place = self._first[example.image_id].product_type, self._place[example.image_id]
        ring = self._rings[kind]
        for step in range(1, min(TRIES, len(ring) - 1) + 1):
            yield self._first[ring[(place + step) % len(ring)]]
        start = self._types.index(kind)
        for step in range(1, min(TRIES, len(self._types) - 1) + 1):
            ring = self._rings[self._types[(start + step) % len(self._types)]]
            yield self._first[ring[place % len(ring)]]

    def same_answer(self, other: Example, example: Example) -> bool:
        """Whether a product has the example's answer to a question of the same type."""
        return (example.question_type, example.answer) in self._answers[other.image_id]


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()
