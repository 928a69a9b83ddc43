"""Images for the page: a bounded number as small JPEGs in data URIs, relative paths for the rest."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote

from data_prep.images.decode import ImageProblem, decode
from data_prep.images.locate import locator

# The defaults of validation. Images come from others, and a dataset may be newer or older than its validation.
_MAX_PIXELS = 64_000_000
_MAX_BYTES = 64 * 2**20


def data_uri(root: Path, relative: str, side: int) -> str | None:
    """A JPEG of at most ``side`` pixels a side; None where there is no such image below ``root``."""
    try:
        small = decode(locator(root).read(relative, "", _MAX_BYTES), _MAX_PIXELS)[0]
    except ImageProblem:
        return None
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=72, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def thumbnails(
    paths: Iterable[str], root: Path | None, kept: Mapping[str, str], *, most: int, side: int
) -> dict[str, str]:
    """Image path → data URI, for the first ``most`` different paths that can be shown.

    Args:
        paths: of images.
        root: their folder.
        kept: what an earlier call returned, for images that are gone since.
        most: how many.
        side: pixels of the longer side.
    """
    found: dict[str, str] = {}
    for relative in dict.fromkeys(paths):
        if len(found) >= most:
            break
        uri = data_uri(root, relative, side) if root is not None else None
        if uri := uri or kept.get(relative):
            found[relative] = uri
    return found


def link_prefix(root: Path | None, page: Path) -> str:
    """What a page at ``page`` puts before an image path to link to it; "" without an image folder."""
    if root is None or not root.is_dir():
        return ""
    return quote(os.path.relpath(root.resolve(), page.parent.resolve()).replace(os.sep, "/")) + "/"
