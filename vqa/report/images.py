"""Images for the page: small JPEGs as data URIs for a bounded number, relative paths for the rest."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from data_prep.images.decode import ImageProblem, decode

_MOST_PIXELS = 50_000_000


def inside(root: Path, relative: str) -> Path | None:
    """The file that a row names, if it is a file within ``root``; links that lead outside count as missing."""
    try:
        base, path = root.resolve(), (root / relative).resolve()
        return path if relative and path.is_relative_to(base) and path.is_file() else None
    except (OSError, ValueError):
        return None


def data_uri(path: Path, side: int) -> str | None:
    """A JPEG of at most ``side`` pixels, or None where the file cannot be shown."""
    try:
        small = decode(path.read_bytes(), _MOST_PIXELS)[0]
    except (OSError, ImageProblem):
        return None
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=72, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def thumbnails(paths: Iterable[str], root: Path | None, *, most: int, side: int) -> dict[str, str]:
    """image path → data URI for the first ``most`` different paths that can be shown."""
    found: dict[str, str] = {}
    if root is None:
        return found
    for relative in dict.fromkeys(paths):
        if len(found) >= most:
            break
        file = inside(root, relative)
        if file and (uri := data_uri(file, side)):
            found[relative] = uri
    return found


def link_prefix(root: Path | None, page: Path) -> str:
    """What stands before an image path so that a page at ``page`` finds the image folder; "" without one."""
    if root is None or not root.is_dir():
        return ""
    return quote(os.path.relpath(root.resolve(), page.parent.resolve()).replace(os.sep, "/")) + "/"


def sheet_uri(source: Path | None) -> str | None:
    """The sample sheet at a width that can be read; of a folder the first image that it holds."""
    if source is not None and source.is_dir():
        files = [f for f in sorted(source.iterdir()) if f.suffix.lower() in {".jpg", ".jpeg", ".png"}]
        source = files[0] if files else None
    return data_uri(source, 1360) if source is not None and source.is_file() else None
