"""Divides products into train, val and test so that equal and nearly equal images are in one split.

>>> assign(["0c1e3f7e7e3c1800", "5be1c0ffee120000", "d76f00aa13579bdf"], val_share=0.1, test_share=0.2, seed=0)
{'0c1e3f7e7e3c1800': 'test', '5be1c0ffee120000': 'train', 'd76f00aa13579bdf': 'val'}

The unit is a group of images. A hash of the seed and the group decides its split, never a shuffle, so products keep their
split when others are added: a model that was trained on yesterday's dataset has not seen today's test images. Only a new
image that is near old ones can change the name of their group, and with it the split.

Each product type is split by the same shares in expectation, but not exactly. Exact shares would require moving products
whenever others are added. `product_types` in stats.json has the actual numbers.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from data_prep.files import read_jsonl
from data_prep.images.near_duplicates import near_pairs
from data_prep.records import Example, ImageFacts

SPLITS = ("train", "val", "test")


def assign(groups: Iterable[str], *, val_share: float, test_share: float, seed: int) -> dict[str, str]:
    """The split of each group.

    With three groups or more, no split is empty: the group whose hash comes nearest is moved into an empty one.
    """
    places = {group: _place(group, seed) for group in sorted(set(groups))}
    split = {
        group: "test" if place < test_share else "val" if place < test_share + val_share else "train"
        for group, place in places.items()
    }
    if len(split) >= len(SPLITS):
        by_place = sorted(places, key=lambda group: places[group])
        if "test" not in split.values():
            split[by_place[0]] = "test"
        if "train" not in split.values():
            split[by_place[-1]] = "train"
        if "val" not in split.values():
            split[next(g for g in by_place[1:] if list(split.values()).count(split[g]) > 1)] = "val"
    return split


def _place(group: str, seed: int) -> float:
    """A number from 0 to 1 that depends only on the seed and the group."""
    return int.from_bytes(hashlib.blake2b(f"split:{seed}:{group}".encode(), digest_size=8).digest()) / 2**64


def leaks(
    splits: Mapping[str, Iterable[Example]],
    images: Mapping[str, ImageFacts],
    *,
    dhash_bits: int,
    color_distance: float,
) -> list[str]:
    """Describe every item, image, file, image group or pair of near images that is in more than one split.

    Args:
        splits: the rows of each split.
        images: facts by item id; near images are searched for in them, whatever groups the rows name.
        dhash_bits, color_distance: what near means; see `data_prep.images.near_duplicates`.
    """
    found: list[str] = []
    splits_of: dict[tuple[str, str], set[str]] = defaultdict(set)
    split_of: dict[str, str] = {}
    for name, rows in splits.items():
        for row in rows:
            split_of[row.item_id] = name
            for kind, key in (
                ("item", row.item_id),
                ("image", row.image_id),
                ("image file", row.image_path),
                ("image group", row.image_group),
                ("question id", row.id),
            ):
                splits_of[kind, key].add(name)
    for (kind, key), names in splits_of.items():
        if len(names) > 1:
            found.append(f"{kind} {key} is in {' and '.join(sorted(names))}")
    known = [(item, facts) for item, facts in images.items() if item in split_of]
    by_file: dict[str, str] = {}
    for item, facts in known:
        other = by_file.setdefault(facts.sha256, item)
        if split_of[other] != split_of[item]:
            found.append(f"items {other} and {item} show the same file, in {split_of[other]} and {split_of[item]}")
    for a, b in near_pairs([f for _, f in known], dhash_bits=dhash_bits, color_distance=color_distance):
        one, other = known[a][0], known[b][0]
        if split_of[one] != split_of[other]:
            found.append(f"items {one} and {other} show nearly equal images, in {split_of[one]} and {split_of[other]}")
    return found


def read_splits(folder: Path) -> dict[str, list[Example]]:
    """The rows of a written dataset."""
    return {name: list(read_jsonl(folder / f"{name}.jsonl", Example)) for name in SPLITS}
