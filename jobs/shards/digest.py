"""What records are made from: fingerprints of settings, which can be explained, and digests of an item's content.

A fingerprint alone says "something changed". Beside it stands the dictionary it was made from, so that an error can name
the setting, its old value and its new one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import orjson

from data_prep.files import read_json, write_json
from jobs.run.layout import ShardStore


def digest(value: object) -> str:
    """Twelve hex digits of the SHA-256 of a value's canonical JSON. Dataclasses count as their fields."""
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]


def text_digest(*parts: str) -> str:
    """Twelve hex digits of the BLAKE2 of some texts. They may hold anything, so their lengths count too."""
    lengths = ",".join(str(len(part)) for part in parts)
    return hashlib.blake2b("\0".join((lengths, *parts)).encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()


def item_hash(key: str, made: str) -> int:
    """An item and its content as a number; the sum of a set of items is a digest that does not depend on their order."""
    return int.from_bytes(hashlib.blake2b(f"{made}{key}".encode(), digest_size=8).digest())


def items_digest(items: Iterable[tuple[str, str]]) -> str:
    """The digest of a set of keys and what each is made from: the sum of their hashes modulo 2^64."""
    return as_hex(sum(item_hash(key, made) for key, made in items))


def as_hex(total: int) -> str:
    """A sum of `item_hash` as text."""
    return f"{total % 2**64:016x}"


def differences(old: Mapping[str, object], new: Mapping[str, object], prefix: str = "") -> list[str]:
    """The settings in which two dictionaries differ, as ``name: old → new``."""
    found: list[str] = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{prefix}{name}.")
        elif before != after:
            found.append(f"{prefix}{name}: {before!r} → {after!r}")
    return found


def write_settings(store: ShardStore, settings: Mapping[str, object]) -> str:
    """Write down settings that records are about to be made under; returns their fingerprint."""
    fingerprint = digest(settings)
    if known_settings(store, fingerprint) is None:
        write_json(store.settings(fingerprint), settings)
    return fingerprint


def known_settings(store: ShardStore, fingerprint: str) -> Mapping[str, object] | None:
    """The settings of a fingerprint; None where they were not written down, or the file was damaged."""
    known = read_json(store.settings(fingerprint))
    return known if known is not None and digest(known) == fingerprint else None
