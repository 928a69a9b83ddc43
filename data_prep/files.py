"""Reads and writes files on file systems that several nodes share. A written file is complete or does not exist."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import orjson

from data_prep.outcomes import UserError, unknown_name
from data_prep.records import from_dict

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a folder is. A moved folder keeps its inode, one that was put back from a copy its path; a copy has neither.

    Device numbers are left out: machines that share a file system number it differently.
    """

    path: str
    inode: int

    @classmethod
    def of(cls, folder: Path) -> Place:
        """The place of a folder that exists."""
        return cls(str(folder.resolve()), folder.stat().st_ino)

    def is_at(self, folder: Path) -> bool:
        """Whether a folder is the one that was here."""
        now = Place.of(folder)
        return self.inode == now.inode or self.path == now.path


FOLDER = "${FOLDER}"  # stands in a file for the folder that the file belongs to, which may be moved


def without_folder(value: Any, folder: Path) -> Any:
    """JSON values in which the folder's own path, wherever it begins a path, is `FOLDER`."""
    # The path ends there, or goes on below it: /runs/abo is not a part of /runs/abo2.
    pattern = re.compile(re.escape(str(folder)) + r"(?=[/\s'\"),;]|$)")
    return _map_strings(value, lambda text: pattern.sub(lambda _: FOLDER, text))


def with_folder(value: Any, folder: Path) -> Any:
    """What `without_folder` returned, with the path that the folder has now."""
    return _map_strings(value, lambda text: text.replace(FOLDER, str(folder)))


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_strings(child, change) for child in value]
    if isinstance(value, dict):
        return {key: _map_strings(child, change) for key, child in value.items()}
    return value


def dumps(record: Any) -> bytes:
    """One line of JSON with its newline. Dataclasses are written with their field names."""
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


def read_jsonl(path: Path, kind: type[T]) -> Iterator[T]:
    """Stream the records of a finished file.

    Raises:
        ValueError: a line does not parse. Finished files are written atomically, so this is damage and not a torn write.
        FileNotFoundError: there is no such file.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield from_dict(kind, orjson.loads(line))
            except (orjson.JSONDecodeError, TypeError) as error:
                raise ValueError(
                    f"{path}:{number}: not a {kind.__name__} record ({error}). The file was damaged after it was "
                    f"written: launch its stage again, which writes it anew."
                ) from error


class AtomicFile:
    """A file that appears under its name only when it is complete.

    It is written under a temporary name in the same folder (a rename is atomic only within one file system), flushed to
    disk and renamed. If the ``with`` block raises, the temporary file is removed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> AtomicFile:
        make_folder(self.path.parent)
        self._temporary = self.path.parent / f".{self.path.name}.{uuid.uuid4().hex}.tmp"
        self._file = self._temporary.open("xb")
        return self

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._file.write(data)

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
            self._file.close()
            if kind is None:
                self._temporary.replace(self.path)
                sync_folder(self.path.parent)
        finally:
            self._temporary.unlink(missing_ok=True)


def shipped_names(folder: Path) -> list[str]:
    """The names of the YAML files that ship with the project in a folder."""
    return sorted(file.stem for file in folder.glob("*.yaml"))


def yaml_file(name: str | Path, folder: Path, kind: str) -> Path:
    """The YAML file that an option names: by its path, or one that ships in ``folder`` by its name.

    Args:
        name: ``my/site.yaml`` or ``site``.
        folder: where the shipped ones are.
        kind: what it is, for the error.

    Raises:
        UserError: there is none; the nearest shipped one is named.
    """
    by_path = str(name).endswith((".yaml", ".yml"))
    path = Path(name) if by_path else folder / f"{name}.yaml"
    if path.is_file():
        return path
    if by_path:
        shipped = ", ".join(shipped_names(folder))
        raise UserError(f"There is no {kind} file {path.absolute()}. Shipped ones, by name: {shipped}.")
    raise UserError(f"{unknown_name(str(name), shipped_names(folder), kind)} The path of a YAML file works, too.")


def make_folder(folder: Path) -> None:
    """Create a folder and the folders above it; each that is new survives a power cut."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename or a new file in ``folder`` survive a power cut: fsync of the file does not cover its name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a small file atomically."""
    with AtomicFile(path) as file:
        file.write(data)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_atomic(path, orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def write_jsonl(path: Path, records: Iterable[Any]) -> int:
    """Stream records into a file that appears when the last one is on disk; return their number."""
    count = 0
    with AtomicFile(path) as file:
        for record in records:
            file.write(dumps(record))
            count += 1
    return count


def read_bytes(path: Path) -> bytes | None:
    """A small file; None if it is missing."""
    for attempt in range(3):
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            # On NFS, reading fails if another node replaced the file since it was opened; opening it again helps.
            if error.errno != errno.ESTALE or attempt == 2:
                raise
    raise AssertionError


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a small JSON object; None if the file is missing or damaged, since a damaged marker counts as not written."""
    try:
        value = orjson.loads(read_bytes(path) or b"")
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def last_json_line(path: Path) -> Mapping[str, Any] | None:
    """The last complete line of a JSONL file that another process may be writing, or None."""
    return next(iter(last_json_lines(path, 1)), None)


def last_json_lines(path: Path, count: int) -> list[Mapping[str, Any]]:
    """The last complete lines of such a file, at most ``count``, and only those in its last 64 KiB; none if one is damaged."""
    try:
        with path.open("rb") as file:
            start = max(0, path.stat().st_size - 65_536)
            file.seek(start)
            lines = file.read().split(b"\n")[1 if start else 0 : -1]  # the first and the last piece may be cut
        return [orjson.loads(line) for line in lines[-count:]]
    except (FileNotFoundError, orjson.JSONDecodeError):
        return []


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
