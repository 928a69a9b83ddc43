"""Finds images that are equal or nearly equal among hundreds of thousands, and puts each with its like.

>>> image_groups([facts_of_a, facts_of_a_resized, facts_of_b], dhash_bits=3, color_distance=2.0)
[0, 0, 2]

Two images are near if their files are equal, or if their difference hashes differ in at most ``dhash_bits`` bits and
their color thumbnails by at most ``color_distance`` on average. Groups are the connected components of that relation, so
that no two near images are in different groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from data_prep.records import ImageFacts

_BLOCK = 512


def image_groups(images: Sequence[ImageFacts], *, dhash_bits: int, color_distance: float) -> list[int]:
    """For each image, the index of the first image of its group."""
    parent = list(range(len(images)))

    def find(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    # Equal files first, and equal fingerprints: what is left for comparing are distinct ones.
    first: dict[tuple[str, ...], int] = {}
    distinct: list[int] = []
    for index, image in enumerate(images):
        same_file = first.setdefault((image.sha256,), index)
        look = (image.dhash, image.colors)
        same_look = first.setdefault(look, index) if image.colors else index
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
    """Every pair of images that are near by their fingerprints, each once, as indices.

    Exact, without comparing all with all: the mean brightness of two images differs by no more than their thumbnails
    do, so that in the order of brightness only neighbors within ``color_distance`` need to be compared. Bits of the hash
    are no help in sorting, since on white backgrounds most of them are zero for everybody.
    """
    usable = [i for i, image in enumerate(images) if len(image.colors) == 96]
    if len(usable) < 2:
        return
    colors = np.frombuffer(bytes.fromhex("".join(images[i].colors for i in usable)), np.uint8).reshape(-1, 48)
    hashes = np.array([int(images[i].dhash, 16) for i in usable], np.uint64)
    brightness = colors.mean(axis=1, dtype=np.float64)
    order = np.argsort(brightness, kind="stable")
    colors, hashes, brightness = colors[order].astype(np.int16), hashes[order], brightness[order]
    ends = np.searchsorted(brightness, brightness + color_distance + 1e-9, side="right")
    for start in range(0, len(order), _BLOCK):
        stop = min(start + _BLOCK, len(order))
        end = int(ends[stop - 1])
        bits = np.bitwise_count(hashes[start:stop, None] ^ hashes[None, start:end])
        rows, columns = np.nonzero(bits <= dhash_bits)
        later = columns > rows
        rows, columns = rows[later] + start, columns[later] + start
        for low in range(0, len(rows), 100_000):
            r, c = rows[low : low + 100_000], columns[low : low + 100_000]
            near = np.abs(colors[r] - colors[c]).mean(axis=1) <= color_distance
            for a, b in zip(order[r[near]], order[c[near]], strict=True):
                yield usable[int(a)], usable[int(b)]
