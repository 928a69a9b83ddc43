"""A small made-up catalogue in ABO's own layout, for the demo and for tests: images, listings, and the truth about them.

`render` writes::

    folder/listings/metadata/listings_[0-9a-f].json.gz    one listing a line
    folder/images/metadata/images.csv.gz                  image_id,height,width,path
    folder/images/small/3f/3f9ab012.jpg
    folder/facts.jsonl                                    what a generator would answer, keyed by the file's SHA-256

A line of ``facts.jsonl``::

    {"image_id": "61b2...L", "path": "3f/3f9ab012.jpg", "image_sha256": "…", "qas": [
        {"question": "How many mugs are there?", "answer": "two", "category": "medium"}, …]}

The catalogue is a function of its seed alone. A few listings are dirty in the ways that ABO's are, so that there is
something to reject.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
from PIL import Image

from data_prep.demo.drawing import Look, draw, random_look
from data_prep.demo.questions import questions
from data_prep.files import write_atomic, write_jsonl

# Each kind of dirt comes once in this many products.
DIRT_EVERY = 60


def render(folder: Path, *, products: int, seed: int) -> None:
    """Write a catalogue of ``products`` usable products, and some dirty listings beside them.

    Args:
        folder: made if it is not there; files of an earlier call are replaced.
        products: how many listings have a readable image and keywords.
        seed: the same seed gives the same files, byte for byte.
    """
    listings: list[dict[str, Any]] = []
    index: list[tuple[str, int, int, str]] = []
    facts: list[dict[str, Any]] = []
    for number in range(products):
        rng = random.Random(f"{seed}:{number}")
        look = random_look(rng)
        image_id, path = _image_name(seed, f"image {number}")
        data = _jpeg(draw(look))
        _write_image(folder, path, data)
        index.append((image_id, 256, 256, path))
        listings.append(_listing(_item_id(seed, number), look, image_id))
        facts.append(
            {
                "image_id": image_id,
                "path": path,
                "image_sha256": hashlib.sha256(data).hexdigest(),
                "qas": questions(look, rng),
            }
        )
        if number % DIRT_EVERY == DIRT_EVERY - 1:
            _add_dirt(folder, listings, index, look, seed=seed, number=number, data=data)
    write_metadata(folder, listings, index)
    write_jsonl(folder / "facts.jsonl", facts)


def _add_dirt(
    folder: Path,
    listings: list[dict[str, Any]],
    index: list[tuple[str, int, int, str]],
    look: Look,
    *,
    seed: int,
    number: int,
    data: bytes,
) -> None:
    """Beside a clean product, one listing of each kind of dirt that real catalogues have."""
    clean = listings[-1]

    def add(kind: str, image: bytes | None, change: Callable[[dict[str, Any]], object] = lambda listing: None) -> None:
        image_id, path = _image_name(seed, f"{kind} {number}")
        index.append((image_id, 256, 256, path))
        if image is not None:
            _write_image(folder, path, image)
        listing = _listing(_item_id(seed, number, kind), look, image_id)
        change(listing)
        listings.append(listing)

    add("missing", None)
    add("truncated", data[: len(data) // 2])
    add("html", b"<html><body>404 Not Found</body></html>")
    add("no keywords", None, lambda listing: listing.pop("item_keywords"))
    add("no image", None, lambda listing: listing.pop("main_image_id"))
    add(
        "german",
        None,
        lambda listing: listing.update(item_keywords=[{"language_tag": "de_DE", "value": "Geschenk"}]),
    )
    listings.append({**clean, "country": "CA", "domain_name": "amazon.ca"})  # the same item in a second marketplace
    listings.append({**clean, "item_id": _item_id(seed, number, "same picture")})


def _listing(item_id: str, look: Look, image_id: str) -> dict[str, Any]:
    """A listing as ABO has it: text fields are lists of values with a language."""

    def text(*values: str) -> list[dict[str, str]]:
        return [{"language_tag": "en_US", "value": value} for value in values]

    noun = look.noun if look.count == "one" else f"{look.noun}s"
    amount = "" if look.count == "one" else f", set of {look.count}"
    return {
        "item_id": item_id,
        "country": "US",
        "marketplace": "Amazon",
        "domain_name": "amazon.com",
        "item_name": text(f"Demo House {look.shape} {look.color} {look.pattern} {noun}{amount}"),
        "brand": text("Demo House"),
        "product_type": [{"value": look.noun.upper()}],
        "color": [{"language_tag": "en_US", "value": look.color, "standardized_values": [look.color.title()]}],
        "item_keywords": text(look.noun, look.pattern, "home", "gift"),
        "main_image_id": image_id,
    }


def _item_id(seed: int, number: int, kind: str = "") -> str:
    return "B0" + hashlib.sha256(f"item {seed} {number} {kind}".encode()).hexdigest()[:8].upper()


def _image_name(seed: int, what: str) -> tuple[str, str]:
    """An image id, and its path under a two-letter folder as ABO has it."""
    digest = hashlib.sha256(f"image {seed} {what}".encode()).hexdigest()
    return digest[:10] + "L", f"{digest[10:12]}/{digest[10:18]}.jpg"


def _write_image(folder: Path, path: str, data: bytes) -> None:
    """Not flushed to the disk one by one, for speed: ``facts.jsonl``, which is written last, says that all are there."""
    file = folder / "images/small" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def write_metadata(folder: Path, listings: list[dict[str, Any]], index: list[tuple[str, int, int, str]]) -> None:
    """The listings over sixteen files, and the index of images."""
    for digit in "0123456789abcdef":
        lines = [
            orjson.dumps(x) + b"\n" for x in listings if hashlib.sha256(x["item_id"].encode()).hexdigest()[0] == digit
        ]
        write_atomic(folder / f"listings/metadata/listings_{digit}.json.gz", gzip.compress(b"".join(lines), mtime=0))
    rows = ["image_id,height,width,path", *(",".join(map(str, row)) for row in index)]
    write_atomic(folder / "images/metadata/images.csv.gz", gzip.compress("\n".join([*rows, ""]).encode(), mtime=0))
