"""What a stage's records were made with, as a short fingerprint that can be explained.

A fingerprint alone says "something changed"; next to it stands the dictionary it was made from, so that an error can name
the setting, its old value and its new one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import orjson

from data_prep.files import read_json, write_json
from data_prep.outcomes import UserError
from jobs.run.layout import Store


def digest(value: Any) -> str:
    """Twelve hex digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]


def keys_digest(keys: Iterable[str]) -> str:
    """A digest of a set of keys that does not depend on their order (the sum of their hashes modulo 2^64)."""
    total = 0
    for key in keys:
        total += int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest())
    return f"{total % 2**64:016x}"


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """The settings in which two dictionaries differ, as ``name: old → new``."""
    found: list[str] = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{prefix}{name}.")
        elif before != after:
            found.append(f"{prefix}{name}: {before!r} → {after!r}")
    return found


def freeze_settings(store: Store, settings: dict[str, Any]) -> str:
    """Remember what a store's records are made with, or check it against what they were made with; the fingerprint.

    Raises:
        UserError: the store holds records that were made with other settings; names each that changed.
    """
    refuse_other_settings(store, settings)
    if read_json(store.settings) != settings:
        write_json(store.settings, settings)  # nothing was made with the others: the attempt that froze them failed
    return digest(settings)


def refuse_other_settings(store: Store, settings: dict[str, Any]) -> None:
    """Look whether a store's records, if it has any, were made with these settings.

    Raises:
        UserError: they were made with others; names each that changed.
    """
    known = read_json(store.settings)
    changed = [] if known is None else differences(known, settings)
    if changed and any(store.folder.glob("shards/*/records.*")):
        raise UserError(
            f"{store.folder} holds records that were made with other settings ({'; '.join(changed)}). "
            f"They are never mixed. Set it back, or use another --run-dir (or delete {store.folder} to do it again)."
        )
