"""Reads the metadata of Amazon Berkeley Objects (ABO) once, as a stream, and keeps the products worth asking about.

A listing (one line of ``listings_0.json.gz``), shortened::

    {"item_id": "B0ADB4121C", "country": "US", "item_name": [{"language_tag": "en_US", "value": "grey sheer curtain"}],
     "product_type": [{"value": "HOME_BED_AND_BATH"}], "item_keywords": [{"language_tag": "en_US", "value": "curtains"}],
     "main_image_id": "70a3384411L"}

A listing is kept if the index has a path for its main image and it has English keywords. All others are rejected with one
of these reasons:

=============================  ========================================================================================
line_too_long                  the line is longer than ``prepare.max_line_bytes``
broken_json, invalid_utf8      the line does not parse: cut off, NaN, not UTF-8
not_an_object                  the line is JSON, but not an object
no_item_id, bad_item_id        the id is missing, or is not 1 to 100 printable characters without blanks
no_main_image_id               the field is missing, empty or not a string
no_keywords_field              the listing has no ``item_keywords``
malformed_keywords             ``item_keywords`` is not a list of values with a language
empty_keywords                 the list is empty, or all of its values are
no_english_keywords            there are values, but none with a language that starts with ``en``
image_not_in_images_csv        the images index has no path for the main image
same_item_second_marketplace   an earlier listing of this item, by file name and line, already qualified
second_item_same_main_image    an item with a lower id has the same main image: each image is asked about, and paid for, once
over_max_per_product_type      not among the products chosen of its type
over_max_items                 not among the products chosen overall
=============================  ========================================================================================

The lowest item id of an image is known only at the end, so all products are held in memory until then, packed into about a
kilobyte each.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from data_prep.abo.reader import read_images_index, read_listings
from data_prep.abo.sampling import Candidate, choose
from data_prep.files import file_digest
from data_prep.outcomes import UserError
from data_prep.records import Product, Rejected
from data_prep.settings import DataSettings, PrepareSettings

_HOW_TO_GET_ABO = (
    "Download ABO's listings and small images from https://amazon-berkeley-objects.s3.amazonaws.com/index.html as "
    "docs/abo.md describes. The demo needs no download."
)


@dataclass(frozen=True, slots=True)
class AboSources:
    """The files to read, all of which exist."""

    listings: list[Path]  # in the order in which they are read
    images_index: Path
    image_root: Path

    def digests(self) -> dict[str, str]:
        """SHA-256 of each metadata file, by name; tells whether the input has changed since the last run."""
        return {path.name: file_digest(path) for path in [*self.listings, self.images_index]}


def find_sources(settings: DataSettings) -> AboSources:
    """Find the files that the settings name.

    Raises:
        UserError: a file or folder does not exist.
    """
    root = settings.root
    if not root.is_dir():
        raise UserError(f"There is no folder {root} (data.root). {_HOW_TO_GET_ABO}")
    pattern = Path(settings.listings)
    base = Path(pattern.anchor) if pattern.is_absolute() else root
    relative = pattern.relative_to(pattern.anchor) if pattern.is_absolute() else pattern
    if relative.name in ("", ".."):
        raise UserError(f"data.listings is {settings.listings!r}: name files, such as listings/metadata/*.json.gz")
    listings = sorted(path for path in base.glob(str(relative)) if path.is_file())
    if not listings:
        raise UserError(f"No file matches {base / relative} (data.root and data.listings). {_HOW_TO_GET_ABO}")
    index = root / settings.images_index
    if not index.is_file():
        raise UserError(f"There is no images index {index} (data.root and data.images_index). {_HOW_TO_GET_ABO}")
    if not settings.image_root.is_dir():
        raise UserError(
            f"There is no image folder {settings.image_root} (data.root and data.images). {_HOW_TO_GET_ABO}"
        )
    return AboSources(listings, index, settings.image_root)


def prepare(sources: AboSources, settings: PrepareSettings, reject: Callable[[Rejected], None]) -> Iterator[Product]:
    """Yield the chosen products, in the order of the files.

    Args:
        sources: what `find_sources` found.
        settings: limits on the number of products, and the seed of the choice under them.
        reject: called once for each listing that gives no product.

    Raises:
        UserError: a metadata file is damaged or has another format.
    """
    # Nothing below makes reference cycles. Python's cyclic collector would walk the growing tables again and again, and
    # take a third of the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        candidates = _one_per_image(sources, settings, reject)
    finally:
        if collecting:
            gc.enable()
    for candidate in choose(candidates, settings, reject):
        yield Product(**orjson.loads(candidate.packed))


def _one_per_image(
    sources: AboSources, settings: PrepareSettings, reject: Callable[[Rejected], None]
) -> list[Candidate]:
    """Every product that qualifies, before the limits apply, in the order of the files."""
    paths = read_images_index(sources.images_index)
    first_seen: dict[str, str] = {}  # item id → file and line of the listing that counts
    by_image: dict[str, Candidate] = {}
    types: dict[str, str] = {}  # one string object for each product type, not one for each product
    for file in sources.listings:
        name = file.name
        for number, content in read_listings(file, settings.max_line_bytes):
            where = f"{name}:{number}"
            item_id = ""
            try:
                listing = _parse(content)
                item_id = _item_id(listing)
                product = _product(listing, item_id, paths)
                if item_id in first_seen:
                    raise _Unusable("same_item_second_marketplace", f"counted: {first_seen[item_id]}")
            except _Unusable as why:
                detail = f"{why.detail}; " if why.detail else ""
                reject(Rejected(item_id, why.reason, f"{detail}item {item_id or 'unknown'} at {where}"))
                continue
            first_seen[item_id] = where
            kind = types.setdefault(product.product_type, product.product_type)
            # Copied, because what orjson returns still holds the four kilobytes that it was written into.
            packed = bytes(memoryview(orjson.dumps(product)))
            candidate = Candidate(item_id, kind, where, packed)
            other = by_image.get(product.image_id)
            if other is not None:
                kept, loser = sorted((candidate, other), key=lambda c: c.item_id)
                detail = f"shown by item {kept.item_id} at {kept.where}; item {loser.item_id} at {loser.where}"
                reject(Rejected(loser.item_id, "second_item_same_main_image", detail))
                if loser is candidate:
                    continue
                del by_image[product.image_id]  # else the new item would take the old one's place in the order
            by_image[product.image_id] = candidate
    return list(by_image.values())


class _Unusable(Exception):
    """Why a listing does not qualify."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


def _parse(content: bytes | object | None) -> dict[str, Any]:
    if content is None:
        raise _Unusable("line_too_long")
    if isinstance(content, bytes):
        try:
            content = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            reason = "invalid_utf8" if "UTF-8" in str(error) else "broken_json"
            raise _Unusable(reason, str(error)) from None
    if not isinstance(content, dict):
        raise _Unusable("not_an_object", f"{type(content).__name__} where a listing should be")
    return content


def _item_id(listing: dict[str, Any]) -> str:
    value = listing.get("item_id")
    if not value:
        raise _Unusable("no_item_id")
    if not isinstance(value, str) or len(value) > 100 or not value.isprintable() or " " in value:
        raise _Unusable("bad_item_id", repr(value)[:120])
    return value


def _product(listing: dict[str, Any], item_id: str, paths: dict[str, str]) -> Product:
    image_id = listing.get("main_image_id")
    if not image_id or not isinstance(image_id, str):
        raise _Unusable("no_main_image_id")
    keywords = _english_keywords(listing)
    path = paths.get(image_id)
    if path is None:
        raise _Unusable("image_not_in_images_csv", f"image {image_id[:100]!r}")
    return Product(
        item_id=item_id,
        image_id=image_id,
        image_path=path,
        name=_first_text(listing.get("item_name")),
        product_type=_first_text(listing.get("product_type")),
        color=_first_text(listing.get("color")),
        keywords=keywords,
        material=_all_texts(listing, "material", "fabric_type"),
        pattern=_all_texts(listing, "pattern"),
        shape=_all_texts(listing, "item_shape"),
        finish=_all_texts(listing, "finish_type"),
    )


def _all_texts(listing: dict[str, Any], *fields: str) -> str:
    """The English values of optional fields, or all values where none is English, without duplicates."""
    found: dict[str, None] = {}
    for values in (listing[field] for field in fields if field in listing):
        entries = [entry for entry in values if isinstance(entry, dict)] if isinstance(values, list) else []
        english = [entry for entry in entries if str(entry.get("language_tag")).startswith(_ENGLISH)]
        for entry in english or entries:
            if isinstance(value := entry.get("value"), str) and (text := " ".join(value.split())):
                found[text] = None
    return ", ".join(found)


_ENGLISH = ("en", "EN", "En")


class _LanguageTags(dict[str, bool]):
    """Whether a language tag is English; a lookup is faster than comparing prefixes millions of times."""

    def __missing__(self, tag: str) -> bool:
        english = tag.startswith(_ENGLISH)
        if len(self) < 1000:  # ABO has a few dozen; hostile input must not fill the memory
            self[tag] = english
        return english


_IS_ENGLISH = _LanguageTags()


def _english_keywords(listing: dict[str, Any]) -> list[str]:
    """The English keywords in their order, without duplicates."""
    values = listing.get("item_keywords")
    if values is None:
        raise _Unusable("no_keywords_field")
    # ABO has some four million keywords, and nearly all are clean. One check of all keywords of a listing at once is much
    # faster than one for each.
    try:
        english = [entry["value"] for entry in values if _IS_ENGLISH[entry["language_tag"]]]
        joined = f"|{'|'.join(english)}|"
        if joined.isprintable() and not ("  " in joined or "| " in joined or " |" in joined or "||" in joined):
            return list(dict.fromkeys(english))
    except (TypeError, KeyError, AttributeError):
        pass
    return _tidied_keywords(values)


def _tidied_keywords(values: object) -> list[str]:
    """`_english_keywords`, for lists in which some keyword has extra blanks or the wrong type."""
    if not isinstance(values, list):
        raise _Unusable("malformed_keywords", f"{type(values).__name__} where a list should be")
    english: dict[str, None] = {}
    others = False
    for entry in values:
        tag = entry.get("language_tag") if isinstance(entry, dict) else None
        if isinstance(tag, str) and tag.startswith(_ENGLISH) and isinstance(entry.get("value"), str):
            if text := " ".join(entry["value"].split()):
                english[text] = None
        elif isinstance(entry, dict) and isinstance(entry.get("value"), str):
            others = others or bool(entry["value"].strip())
        else:
            raise _Unusable("malformed_keywords", f"{repr(entry)[:80]} where a value with its language should be")
    if not english:
        raise _Unusable("no_english_keywords" if others else "empty_keywords")
    return list(english)


def _first_text(values: Any) -> str:
    """The first English value of a text field, or else its first value; "" if it has none, since the field is optional."""
    try:
        for entry in values:  # the fast path: a clean list with one value, or with an English one
            if len(values) == 1 or _IS_ENGLISH[entry["language_tag"]]:
                if text := " ".join(entry["value"].split()):
                    return text
                break
    except (TypeError, KeyError, AttributeError):
        pass
    return _searched_text(values)


def _searched_text(values: object) -> str:
    """`_first_text`, for a field that is missing, has no English value, or has wrong types in it."""
    if not isinstance(values, list):
        return ""
    first = ""
    for entry in values:
        if not isinstance(entry, dict) or not isinstance(value := entry.get("value"), str):
            continue
        tag = entry.get("language_tag")
        is_english = isinstance(tag, str) and tag.startswith(_ENGLISH)
        if (is_english or not first) and (text := " ".join(value.split())):
            if is_english:
                return text
            first = text
    return first
