"""Reads ABO's metadata files line by line in bounded memory, even if a file is damaged or hostile.

>>> next(read_lines(Path("listings_0.json.gz"), longest=8 * 2**20))
(1, b'{"item_id": "B0DB86A73E", ...}')

`gzip.open` is not used because it does not limit the length of a line, and igzip (isal) takes half the time of zlib.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import orjson
from isal import isal_zlib

from data_prep.outcomes import UserError

_PIECE = 1 << 19  # bytes that are read and decompressed at once
_GZIP = 31  # zlib's wbits for: expect a gzip header, and check the checksum and length at the end
_LARGEST_JSON = 1 << 30  # bytes; a file that is one JSON value is parsed whole, in some six times its size of memory


def read_lines(path: Path, longest: int) -> Iterator[tuple[int, bytes | None]]:
    """Number and content of each line that is not blank; None instead of the content if it exceeds ``longest`` bytes.

    Raises:
        UserError: the file cannot be read or decompressed to its end. Going on would silently lose the rest.
    """
    number, rest, skipping = 0, b"", False
    for piece in _pieces(path):
        lines = piece.split(b"\n")
        if len(lines) == 1:
            # No line ends in this piece. Of an overlong line nothing is kept, so that memory stays bounded.
            skipping = skipping or len(rest) + len(piece) > longest
            rest = b"" if skipping else rest + piece
            continue
        lines[0] = rest + lines[0]
        rest = lines.pop()
        for line in lines:
            number += 1
            if skipping or len(line) > longest:
                skipping = False
                yield number, None
            elif line and not line.isspace():
                yield number, line
        skipping = len(rest) > longest
        if skipping:
            rest = b""
    if skipping:
        yield number + 1, None
    elif rest.strip():
        yield number + 1, rest


def read_listings(path: Path, longest: int) -> Iterator[tuple[int, bytes | object | None]]:
    """Number and content of each listing: bytes to parse, a parsed value (of a JSON list), or None if the line is too long."""
    if _is_one_json_list(path):
        listings = _parse_whole(path, "listings")
        assert isinstance(listings, list), "a JSON value that starts with [ is a list"
        yield from enumerate(listings, 1)
    else:
        yield from read_lines(path, longest)


def read_images_index(path: Path) -> dict[str, str]:
    """Read image id → path below the image folder, from a CSV file with these two columns or a JSON object.

    Raises:
        UserError: the file is neither.
    """
    if ".json" in path.suffixes:
        mapping = _parse_whole(path, "images index")
        if not isinstance(mapping, dict):
            raise UserError(f"{path} must be a JSON object from image id to path, not {type(mapping).__name__}.")
        return {key: value for key, value in mapping.items() if isinstance(value, str) and value}
    lines = (line for _, line in read_lines(path, longest=65_536) if line)
    rows = csv.reader(map(_as_text, lines))
    try:
        header = [name.strip() for name in next(rows, [])]
        if "image_id" not in header or "path" not in header:
            raise UserError(
                f"{path} must be CSV whose first line names the columns image_id and path; it starts with {header[:6]}."
            )
        key, value = header.index("image_id"), header.index("path")
        last = max(key, value)
        # A row without a path is skipped; the listing that needs it is rejected as image_not_in_images_csv.
        return {row[key]: row[value] for row in rows if len(row) > last and row[value]}
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}: not CSV ({error}). Download the file again.") from error


def _as_text(line: bytes) -> str:
    return line.decode("utf-8", "replace")


def _is_one_json_list(path: Path) -> bool:
    """Whether the file is a JSON list rather than one object a line, judging by its first character."""
    for piece in _pieces(path):
        if piece.strip():
            return piece.lstrip()[:1] == b"["
    return False


def _parse_whole(path: Path, what: str) -> object:
    """Parse a file that is one JSON value."""
    parts: list[bytes] = []
    size = 0
    for piece in _pieces(path):
        size += len(piece)
        if size > _LARGEST_JSON:
            raise UserError(f"{path} is too large to be read as one JSON value. Write one object per line instead.")
        parts.append(piece)
    try:
        return orjson.loads(b"".join(parts))
    except orjson.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON ({error}): it cannot be read as {what}.") from error


def _pieces(path: Path) -> Iterator[bytes]:
    """The file's content in pieces of bounded size, decompressed if it starts with gzip's magic bytes.

    Spreadsheets and some editors write a byte order mark in front; it is left out.
    """
    pieces = _raw_pieces(path)
    if first := next(pieces, b""):
        yield first.removeprefix(codecs.BOM_UTF8)
    yield from pieces


def _raw_pieces(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            if file.read(2) == b"\x1f\x8b":
                file.seek(0)
                yield from _decompressed(file, path)
            elif path.suffix == ".gz":
                raise UserError(f"{path} is not a gzip file. Download it again.")
            else:
                file.seek(0)
                while piece := file.read(_PIECE):
                    yield piece
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error


def _decompressed(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Decompress a gzip file, which may consist of several members in a row (RFC 1952)."""
    data = file.read(_PIECE)
    try:
        while data:
            member = isal_zlib.decompressobj(_GZIP)
            while not member.eof:
                if not data:
                    raise UserError(
                        f"{path} is cut off: its compressed data ends too early, so listings would be missing. "
                        f"Download it again."
                    )
                if piece := member.decompress(data, _PIECE):
                    yield piece
                data = member.unconsumed_tail or (member.unused_data if member.eof else file.read(_PIECE))
            data = data or file.read(_PIECE)
    except isal_zlib.error as error:  # type: ignore[misc]  # its stub calls the class an exception
        raise UserError(f"{path} is damaged ({error}), so listings would be missing. Download it again.") from error
