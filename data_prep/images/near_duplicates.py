"""Finds equal and nearly equal images, among hundreds of thousands.

>>> first_near([facts_of_b, facts_of_a_resized], [facts_of_a], dhash_bits=2, color_distance=2.0)
[None, 0]

Two images are near if their files are equal, or if their difference hashes differ in at most ``dhash_bits`` bits and their
color thumbnails by at most ``color_distance`` (of 255) on average. The relation is not transitive, and nothing here makes it
so: among thousands of necklaces on white each is near some other, and one chain of them would be half a catalogue.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from data_prep.records import ImageFacts

_BLOCK = 512  # images that are compared with their neighbors at once
_PAIRS = 100_000  # pairs whose colors are compared at once: bounds the memory where many images look alike

_Look = tuple[str, str]  # dhash and colors


def first_near(
    images: Sequence[ImageFacts], others: Sequence[ImageFacts], *, dhash_bits: int, color_distance: float
) -> list[int | None]:
    """The index of the first of ``others`` that each image is near, or None."""
    by_file: dict[str, int] = {}
    by_look: dict[_Look, int] = {}
    for index, other in enumerate(others):
        by_file.setdefault(other.sha256, index)
        by_look.setdefault(_look(other), index)
    asked = list(dict.fromkeys(map(_look, images)))
    firsts = np.array(list(by_look.values()), np.int64)
    found = np.full(len(asked), len(others))
    for a, b in _near(asked, list(by_look), dhash_bits, color_distance):
        np.minimum.at(found, a, firsts[b])
    near = dict(zip(asked, found.tolist(), strict=True))
    first = [min(near[_look(image)], by_file.get(image.sha256, len(others))) for image in images]
    return [None if index == len(others) else index for index in first]


def repeats(images: Sequence[ImageFacts], *, dhash_bits: int, color_distance: float) -> list[int | None]:
    """For each image the index of the first kept image before it that it is near; None: the image is itself kept.

    An image that is near only dropped ones is kept, so images are never dropped by a chain of others.
    """
    number: dict[_Look, int] = {}
    for image in images:
        number.setdefault(_look(image), len(number))
    near: dict[int, list[int]] = defaultdict(list)
    looks = list(number)
    for a, b in _near(looks, looks, dhash_bits, color_distance):
        for one, other in zip(a.tolist(), b.tolist(), strict=True):
            near[one].append(other)  # with itself, too
    kept_files: dict[str, int] = {}
    kept_looks: dict[int, int] = {}
    found: list[int | None] = []
    for index, image in enumerate(images):
        look = number[_look(image)]
        kept = [kept_looks[other] for other in near[look] if other in kept_looks]
        if image.sha256 in kept_files:
            kept.append(kept_files[image.sha256])
        found.append(min(kept, default=None))
        if not kept:
            kept_files[image.sha256] = kept_looks[look] = index
    return found


def _look(image: ImageFacts) -> _Look:
    return image.dhash, image.colors


def _near(
    looks: Sequence[_Look], others: Sequence[_Look], dhash_bits: int, color_distance: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every pair of a look and one of the others that are near, as two arrays of indices at a time.

    The result is exact, without comparing all with all: two images differ in mean brightness by no more than their
    thumbnails differ on average. So in the order of brightness, only neighbors within ``color_distance`` need to be compared.
    Sorting by hash would not help, since on white backgrounds most bits are zero for all images.
    """
    order, hashes, colors, brightness = _by_brightness(looks)
    other_order, other_hashes, other_colors, other_brightness = _by_brightness(others)
    # 1e-9: the mean of 48 integers is not exact in floating point.
    starts = np.searchsorted(other_brightness, brightness - color_distance - 1e-9, side="left")
    ends = np.searchsorted(other_brightness, brightness + color_distance + 1e-9, side="right")
    for low in range(0, len(order), _BLOCK):
        high = min(low + _BLOCK, len(order))
        start, end = int(starts[low]), int(ends[high - 1])
        bits = np.bitwise_count(hashes[low:high, None] ^ other_hashes[None, start:end])
        rows, columns = np.nonzero(bits <= dhash_bits)
        rows, columns = rows + low, columns + start
        for first in range(0, len(rows), _PAIRS):
            r, c = rows[first : first + _PAIRS], columns[first : first + _PAIRS]
            near = np.abs(colors[r] - other_colors[c]).mean(axis=1) <= color_distance
            yield order[r[near]], other_order[c[near]]


def _by_brightness(looks: Sequence[_Look]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Indices, difference hashes, colors (N, 48) and mean brightness, the darkest first."""
    colors = np.frombuffer(bytes.fromhex("".join(colors for _, colors in looks)), np.uint8).reshape(-1, 48)
    hashes = np.array([int(dhash, 16) for dhash, _ in looks], np.uint64)
    brightness = colors.mean(axis=1, dtype=np.float64)
    order = np.argsort(brightness, kind="stable")
    return order, hashes[order], colors[order].astype(np.int16), brightness[order]
