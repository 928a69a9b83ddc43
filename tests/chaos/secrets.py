"""Searches for a key wherever it could leak: command lines of running processes, files in any encoding, file names."""

from __future__ import annotations

import base64
import gzip
import threading
import time
import urllib.parse
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def forms(key: str) -> dict[str, bytes]:
    """A key as text, in base64 (which depends on what precedes it), in hexadecimal and in a URL."""
    raw = key.encode()
    found = {"text": raw, "hex": raw.hex().encode(), "URL": urllib.parse.quote(key, safe="").encode()}
    for before in range(3):
        # Drop the characters at the edges, which also hold bits of the neighbors.
        encoded = base64.b64encode(bytes(before) + raw + bytes(3))[4 if before else 0 : -8]
        found[f"base64 {before}"] = encoded
        found[f"base64url {before}"] = encoded.translate(bytes.maketrans(b"+/", b"-_"))
    return found


def leaks(text: bytes, keys: Iterable[str]) -> list[str]:
    """The forms in which a text contains any of the keys."""
    return [form for key in keys for form, needle in forms(key).items() if needle in text]


def leaks_in_files(folder: Path, keys: Iterable[str]) -> list[str]:
    """Every file under a folder with a key in its name or its (decompressed) content."""
    found = []
    for path in sorted(folder.rglob("*")):
        data = bytes(path)
        if path.is_file():
            content = path.read_bytes()
            data += content
            with suppress(OSError, EOFError, zlib.error):
                data += gzip.decompress(content)
        found += [f"{path}: {form}" for form in leaks(data, keys)]
    return found


class Watch:
    """Context manager that keeps reading the command lines of all processes, as ``ps`` does."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._keys = list(keys)
        self.leaks: list[str] = []
        self.seen: set[str] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.is_set():
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    line = file.read_bytes()
                    self.seen.add(line.replace(b"\0", b" ").decode(errors="replace"))
                    self.leaks += [f"{line!r}: {form}" for form in leaks(line, self._keys)]
            time.sleep(0.05)
