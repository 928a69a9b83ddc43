"""What a stage's records were made with, as a short fingerprint that can be explained.

A fingerprint alone says "something changed"; next to it stands the dictionary it was made from, so that an error can name
the setting, its old value and its new one.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from data_prep.records import UserError, write_json
from jobs.rundir import Store


def digest(value: Any) -> str:
    """Twelve hex digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def read_json(path: Path) -> dict[str, Any] | None:
    """A small JSON file, or None where it is absent or damaged (such a marker counts as not written)."""
    for attempt in range(3):
        try:
            value = orjson.loads(path.read_bytes())
            return value if isinstance(value, dict) else None
        except (FileNotFoundError, NotADirectoryError, orjson.JSONDecodeError):
            return None
        except OSError as error:
            # A network file system may lose a file that another node replaces between opening and reading it.
            if error.errno != errno.ESTALE or attempt == 2:
                raise
    raise AssertionError


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


def last_json_line(path: Path) -> dict[str, Any] | None:
    """The last complete line of a JSONL file that is being written, or None."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 65_536))
            lines = file.read().split(b"\n")[:-1]
        return orjson.loads(lines[-1]) if lines else None
    except (FileNotFoundError, orjson.JSONDecodeError):
        return None
