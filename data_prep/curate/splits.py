"""Divides products into train, val and test by a hash of the seed and the image id, and finds near images on two sides.

>>> side("61QNhWRq3JL", val_share=0.1, test_share=0.2, seed=0)
'train'

The side depends on nothing else: not on the other products, their order, the images' content or the machine. So everybody who
uses ABO with the same seed and shares has the same test images, and no product ever changes sides. In any language::

    place = (first 8 bytes of SHA-256 of the UTF-8 text "<seed>:<image id>", as a big-endian integer) / 2^64
    side  = test if place < test_share, val if place < test_share + val_share, else train

Each product type is split by the same shares in expectation, but not exactly. Exact shares would require moving products
whenever others are added. `product_types` in stats.json has the actual numbers.

Two images that look alike may fall on two sides. `curate` then drops the one that a model would learn from: test stays as it
is, train and val lose what is near it.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from data_prep.files import read_jsonl
from data_prep.images.near_duplicates import first_near
from data_prep.records import Example, ImageFacts

SPLITS = ("train", "val", "test")


def side(image_id: str, *, val_share: float, test_share: float, seed: int) -> str:
    """The split of all products that show an image."""
    place = int.from_bytes(hashlib.sha256(f"{seed}:{image_id}".encode()).digest()[:8], "big") / 2**64
    return "test" if place < test_share else "val" if place < test_share + val_share else "train"


def near_items(
    items: Iterable[str],
    others: Iterable[str],
    images: Mapping[str, ImageFacts],
    *,
    dhash_bits: int,
    color_distance: float,
) -> dict[str, str]:
    """The items whose image is near that of one of the others, and the lowest such other.

    Args:
        items, others: item ids.
        images: facts by item id.
        dhash_bits, color_distance: what near means; see `data_prep.images.near_duplicates`.
    """
    asked, known = list(items), sorted(others)
    found = first_near(
        [images[item] for item in asked],
        [images[item] for item in known],
        dhash_bits=dhash_bits,
        color_distance=color_distance,
    )
    return {item: known[index] for item, index in zip(asked, found, strict=True) if index is not None}


def leaks(
    splits: Mapping[str, Iterable[Example]],
    images: Mapping[str, ImageFacts],
    *,
    dhash_bits: int,
    color_distance: float,
) -> list[str]:
    """Describe every item, image, file or question that is in more than one split, and every image near one of another.

    Args:
        splits: the rows of each split.
        images: facts by item id; items without are not compared.
        dhash_bits, color_distance: what near means; see `data_prep.images.near_duplicates`.
    """
    found: list[str] = []
    splits_of: dict[tuple[str, str], set[str]] = defaultdict(set)
    members: dict[str, set[str]] = {name: set() for name in splits}
    for name, rows in splits.items():
        for row in rows:
            if row.item_id in images:
                members[name].add(row.item_id)
            for kind, key in (
                ("item", row.item_id),
                ("image", row.image_id),
                ("image file", row.image_path),
                ("question id", row.id),
            ):
                splits_of[kind, key].add(name)
    for (kind, key), names in splits_of.items():
        if len(names) > 1:
            found.append(f"{kind} {key} is in {' and '.join(sorted(names))}")
    for one, other in itertools.combinations(splits, 2):
        near = near_items(
            sorted(members[one] - members[other]),
            members[other] - members[one],
            images,
            dhash_bits=dhash_bits,
            color_distance=color_distance,
        )
        for item, like in near.items():
            what = "the same file" if images[item].sha256 == images[like].sha256 else "nearly equal images"
            found.append(f"items {item} and {like} show {what}, in {one} and {other}")
    return found


def read_splits(folder: Path) -> dict[str, list[Example]]:
    """The rows of a written dataset."""
    return {name: list(read_jsonl(folder / f"{name}.jsonl", Example)) for name in SPLITS}
