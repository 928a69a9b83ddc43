"""Append-only record files that survive kills, torn writes and flipped bits.

One attempt at one shard writes one file, ``records.<attempt>.<settings>.jsonl``; nobody else ever writes to it. Its name holds
the fingerprint of the settings that the records were made under. Each line is the outcome of one item: ``made`` is a digest of
the content that it was made from, and every line ends with a checksum of the text before it::

    {"key":"B0ADB4121C","made":"77f0c1d2e3a4","ok":true,"value":{"width":256},"at":1764073423.2,"crc":"5c3b1e90"}
    {"key":"B0DIRT05NO0","made":"0b9a…","ok":false,"reason":"not_an_image","detail":"…","retry":false,"at":1764073423.3,"crc":"c0a8d7f3"}

It is plain JSONL, so any tool can read it. Readers skip a torn last line (a write that was cut off) and lines with a wrong
checksum. They count both, and the items are done again.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from data_prep.files import make_folder, sync_folder
from data_prep.outcomes import Failed, Ok
from data_prep.records import Reply, from_dict

CHECKSUM_LENGTH = len(b',"crc":"00000000"}\n')
SYNC_EVERY_SECONDS = 1.0  # free work that a power cut may lose; a killed process loses none, the kernel has its writes


@dataclass(slots=True)
class Record:
    """One line of a record file: the outcome of one try at one item."""

    key: str
    ok: bool
    made: str = ""  # digest of the item's content, see `ShardSource.made_from`
    settings: str = ""  # fingerprint, from the file's name
    at: float = 0.0  # Unix time at which it was written
    value: dict[str, Any] | None = None  # the result's fields; of a failure: a reply that was paid for all the same
    reason: str = ""
    detail: str = ""
    retry: bool = False

    def outcome(self, value_type: type[Any]) -> Ok | Failed:
        """The outcome as the stage recorded it.

        Args:
            value_type: the dataclass of the stage's results.
        """
        if self.ok:
            return Ok(from_dict(value_type, self.value or {}))
        reply = from_dict(Reply, self.value) if self.value is not None else None
        return Failed(self.reason, self.detail, self.retry, reply)


def seal(record: Mapping[str, object]) -> bytes:
    """One line of JSON that ends with the CRC-32 of what stands before it."""
    body = orjson.dumps(record)[:-1]
    return b'%b,"crc":"%08x"}\n' % (body, zlib.crc32(body))


def unseal(line: bytes) -> dict[str, Any] | None:
    """The fields of a line, or None where the line is torn or damaged."""
    body, crc = line[:-CHECKSUM_LENGTH], line[-CHECKSUM_LENGTH:]
    if not body or crc != b',"crc":"%08x"}\n' % zlib.crc32(body):
        return None
    fields: dict[str, Any] = orjson.loads(body + b"}")
    return fields


def new_attempt() -> str:
    """A name that no other attempt has, on any node, whatever the clocks say: time, host, process, random digits."""
    now = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    return f"{now}-{socket.gethostname().split('.')[0]}-{os.getpid()}-{secrets.token_hex(3)}"


class JournalWriter:
    """Appends the outcomes of one attempt. The file is created with the first record. Safe to use from several threads.

    Every record is handed to the operating system at once, so a killed process loses none that it recorded;
    ``durable`` ones are on the disk before `append` returns.
    """

    def __init__(self, folder: Path, attempt: str, fingerprint: str) -> None:
        self.path = folder / f"records.{attempt}.{fingerprint}.jsonl"
        self._descriptor: int | None = None
        self._lock = threading.Lock()
        self._synced = time.monotonic()
        self._failure: OSError | None = None

    def append(self, key: str, outcome: Ok | Failed, made: str = "", *, durable: bool = False) -> None:
        """Write one outcome, and what it was made from.

        Raises:
            OSError: the disk is full or gone. The file then ends in a torn line and takes no more records.
        """
        record: dict[str, object] = {"key": key, "made": made, "ok": isinstance(outcome, Ok)}
        if isinstance(outcome, Failed):
            record |= {"reason": outcome.reason, "detail": outcome.detail, "retry": outcome.retry}
        if outcome.value is not None:
            record["value"] = outcome.value
        record["at"] = time.time()
        with self._lock:
            if self._failure:
                raise self._failure
            try:
                if self._descriptor is None:
                    self._open()
                self._write(seal(record))
                if durable or time.monotonic() - self._synced > SYNC_EVERY_SECONDS:
                    self._sync()
            except OSError as error:
                self._failure = error
                raise

    def _open(self) -> None:
        make_folder(self.path.parent)
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        sync_folder(self.path.parent)

    def _write(self, line: bytes) -> None:
        assert self._descriptor is not None
        while line:  # a nearly full disk accepts part of a line
            line = line[os.write(self._descriptor, line) :]

    def _sync(self) -> None:
        assert self._descriptor is not None
        os.fsync(self._descriptor)
        self._synced = time.monotonic()

    def close(self) -> None:
        """Put everything on the disk."""
        with self._lock:
            if self._descriptor is not None:
                if not self._failure:
                    self._sync()
                os.close(self._descriptor)
                self._descriptor = None


@dataclass(slots=True)
class ReadReport:
    """What readers skipped."""

    torn: int = 0  # last lines cut off by a kill or a full disk: expected, the item is done again
    broken: list[str] = field(
        default_factory=list
    )  # "file:line" with a wrong checksum: the disk or somebody changed it


@dataclass(frozen=True, slots=True)
class Extent:
    """The first bytes of a file, which a shard marker vouches for."""

    size: int  # bytes
    crc: int  # CRC-32 of them


def journal_files(shard_folder: Path) -> list[Path]:
    """The record files of one shard, in the order in which they were begun (by their writers' clocks)."""
    try:
        names = sorted(entry.name for entry in os.scandir(shard_folder) if entry.name.startswith("records."))
    except FileNotFoundError:
        return []
    return [shard_folder / name for name in names if name.endswith(".jsonl")]


def extents(paths: Iterable[Path]) -> dict[str, Extent]:
    """The present extent of each file, by file name."""
    # Sizes first and once: another attempt may be writing.
    sizes = {path: path.stat().st_size for path in paths}
    return {path.name: Extent(size, _crc(path, size) or 0) for path, size in sizes.items()}


def corrupted_files(shard_folder: Path, known: Mapping[str, Extent]) -> list[Path]:
    """The files that no longer begin with the bytes of their extent. What another attempt appended does not count."""
    return [shard_folder / name for name, one in known.items() if _crc(shard_folder / name, one.size) != one.crc]


def _crc(path: Path, size: int) -> int | None:
    """CRC-32 of the first ``size`` bytes of a file; None where there are fewer."""
    crc = 0
    try:
        with path.open("rb") as file:
            while size > 0 and (piece := file.read(min(size, 1 << 20))):
                crc = zlib.crc32(piece, crc)
                size -= len(piece)
    except FileNotFoundError:
        return None
    return crc if size == 0 else None


def settings_of(path: Path) -> str:
    """The fingerprint of the settings that a file's records were made under."""
    return path.name.split(".")[-2]


def read_journal(path: Path, report: ReadReport) -> Iterator[Record]:
    """Stream the records of one attempt's file.

    Args:
        path: the file; one that vanished yields nothing.
        report: counts what is skipped.
    """
    try:
        lines = path.open("rb")
    except FileNotFoundError:
        return
    settings = settings_of(path)
    with lines:
        for number, line in enumerate(lines, 1):
            fields = unseal(line)
            if fields is not None:
                yield Record(**fields, settings=settings)
            elif line.endswith(b"\n"):
                report.broken.append(f"{path}:{number}")
            else:
                report.torn += 1
