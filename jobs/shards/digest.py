"""Fingerprints of settings that can be explained.

A fingerprint alone says "something changed". Beside it stands the dictionary it was made from, so that an error can name
the setting, its old value and its new one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import orjson

from data_prep.files import read_json, write_json
from data_prep.outcomes import UserError
from jobs.run.layout import ShardStore


def digest(value: object) -> str:
    """Twelve hex digits of the SHA-256 of a value's canonical JSON. Dataclasses count as their fields."""
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]


def keys_digest(keys: Iterable[str]) -> str:
    """A digest of a set of keys that does not depend on their order: the sum of their hashes modulo 2^64."""
    total = 0
    for key in keys:
        total += int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest())
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


def freeze_settings(store: ShardStore, settings: Mapping[str, object]) -> str:
    """Write down the settings of a store's records, or check them against those written down; returns the fingerprint.

    Raises:
        UserError: the store holds records made under other settings; names each that changed.
    """
    refuse_other_settings(store, settings)
    if read_json(store.settings) != settings:
        write_json(
            store.settings, settings
        )  # no record was made under the old ones: that attempt failed before its first
    return digest(settings)


def refuse_other_settings(store: ShardStore, settings: Mapping[str, object]) -> None:
    """Check that the records of a store, if there are any, were made under these settings.

    Raises:
        UserError: they were made under others; names each that changed.
    """
    known = read_json(store.settings)
    changed = [] if known is None else differences(known, settings)
    if changed and any(store.folder.glob("shards/*/records.*")):
        raise UserError(
            f"{store.folder} holds records that were made under other settings ({'; '.join(changed)}). "
            f"They are never mixed. Restore the setting, or use another --run-dir (or delete {store.folder} to start it over)."
        )
