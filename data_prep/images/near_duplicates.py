"""Groups equal and nearly equal images, among hundreds of thousands.

>>> image_groups([facts_of_a, facts_of_a_resized, facts_of_b], dhash_bits=3, color_distance=2.0)
[0, 0, 2]

Two images are near if their files are equal, or if their difference hashes differ in at most ``dhash_bits`` bits and their
color thumbnails by at most ``color_distance`` (of 255) on average. Groups are the connected components of that relation, so no
two near images are in different groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from data_prep.records import ImageFacts

_BLOCK = 512  # images that are compared with their neighbors at once
_PAIRS = 100_000  # pairs whose colors are compared at once: bounds the memory where many images look alike


def image_groups(images: Sequence[ImageFacts], *, dhash_bits: int, color_distance: float) -> list[int]:
    """The index of the first image of its group, for each image."""
    parent = list(range(len(images)))

    def find(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    # Equal files and equal fingerprints are joined first, by hash table; only distinct ones need to be compared.
    first: dict[tuple[str, ...], int] = {}
    distinct: list[int] = []
    for index, image in enumerate(images):
        same_file = first.setdefault((image.sha256,), index)
        look = (image.dhash, image.colors)
        same_look = first.setdefault(look, index)
        low, high = sorted((find(same_file), find(same_look)))
        parent[high] = low
        if find(index) == index:
            distinct.append(index)
        else:
            parent[index] = find(index)
    for a, b in near_pairs([images[i] for i in distinct], dhash_bits=dhash_bits, color_distance=color_distance):
        low, high = sorted((find(distinct[a]), find(distinct[b])))
        parent[high] = low
    return [find(index) for index in range(len(images))]


def near_pairs(images: Sequence[ImageFacts], *, dhash_bits: int, color_distance: float) -> Iterator[tuple[int, int]]:
    """Yield every pair of images with near fingerprints once, as indices.

    The result is exact, without comparing all with all: two images differ in mean brightness by no more than their
    thumbnails differ on average. So in the order of brightness, only neighbors within ``color_distance`` need to be compared.
    Sorting by hash would not help, since on white backgrounds most bits are zero for all images.
    """
    colors = np.frombuffer(bytes.fromhex("".join(image.colors for image in images)), np.uint8).reshape(-1, 48)
    hashes = np.array([int(image.dhash, 16) for image in images], np.uint64)
    brightness = colors.mean(axis=1, dtype=np.float64)
    order = np.argsort(brightness, kind="stable")
    colors, hashes, brightness = colors[order].astype(np.int16), hashes[order], brightness[order]
    # 1e-9: the mean of 48 integers is not exact in floating point.
    ends = np.searchsorted(brightness, brightness + color_distance + 1e-9, side="right")
    for start in range(0, len(order), _BLOCK):
        stop = min(start + _BLOCK, len(order))
        end = int(ends[stop - 1])
        bits = np.bitwise_count(hashes[start:stop, None] ^ hashes[None, start:end])
        rows, columns = np.nonzero(bits <= dhash_bits)
        later = columns > rows  # each pair once, and no image with itself
        rows, columns = rows[later] + start, columns[later] + start
        for low in range(0, len(rows), _PAIRS):
            r, c = rows[low : low + _PAIRS], columns[low : low + _PAIRS]
            near = np.abs(colors[r] - colors[c]).mean(axis=1) <= color_distance
            for a, b in zip(order[r[near]], order[c[near]], strict=True):
                yield int(a), int(b)
