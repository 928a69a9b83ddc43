"""Fingerprints an image by its looks: a difference hash for its outlines, and a 4 x 4 thumbnail for its colors.

>>> fingerprint(Image.open("mug.jpg").convert("RGB"))
('0c1e3f7e7e3c1800', 'fefefef0e2d1...')

Two files show the same image (resized, compressed again) if both parts are close; see `near_duplicates`. The hash alone is
not enough: products photographed on white share their outlines, so all shirts of a shop would count as one image.
"""

from __future__ import annotations

from PIL import Image

THUMBNAIL = (36, 32)  # an image may be averaged down to this size before it is fingerprinted

_COLUMNS, _ROWS = 9, 8  # of the gray thumbnail; each of its rows has eight neighboring pairs
_NOISE = 4  # of 255: smaller differences come from compression
_PAIRS = [(row * _COLUMNS + x, row * _COLUMNS + x + 1) for row in range(_ROWS) for x in range(_COLUMNS - 1)]


def fingerprint(image: Image.Image) -> tuple[str, str]:
    """The 64-bit difference hash (16 hex digits) and the colors (96 hex digits) of an RGB image.

    The hash is Neal Krawetz's dHash: each bit says whether a cell of a 9 x 8 gray thumbnail is brighter than its right
    neighbor. Here it has to be brighter by more than 4 of 255, so that compression noise on white backgrounds sets no bits.
    """
    small = image if image.size == THUMBNAIL else image.resize(THUMBNAIL, Image.Resampling.BOX)
    gray = small.convert("L").reduce(4).tobytes()
    bits = 0
    for left, right in _PAIRS:
        bits = bits << 1 | (gray[left] > gray[right] + _NOISE)
    return f"{bits:016x}", small.reduce((9, 8)).tobytes().hex()
