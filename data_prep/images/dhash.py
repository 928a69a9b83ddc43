"""What an image looks like in a few bytes: a difference hash for its outlines, a 4 x 4 thumbnail for its colors.

>>> fingerprint(Image.open("mug.jpg").convert("RGB"))
('0c1e3f7e7e3c1800', 'fefefef0e2d1...')

Two files show the same image (resized, compressed again) if both are close: see `near`. The hash alone is not enough:
products photographed on white share their outlines, so that every shirt of a shop would be one image.
"""

from __future__ import annotations

from PIL import Image

THUMBNAIL = (36, 32)  # an image may be averaged down to this size before it is fingerprinted

_COLUMNS, _ROWS = 9, 8  # of the grey thumbnail; each of its rows has eight neighboring pairs
_NOISE = 4  # of 255
_PAIRS = [(row * _COLUMNS + x, row * _COLUMNS + x + 1) for row in range(_ROWS) for x in range(_COLUMNS - 1)]


def fingerprint(image: Image.Image) -> tuple[str, str]:
    """The 64-bit difference hash (16 hex digits) and the colors (96 hex digits) of an RGB image.

    The hash is Neal Krawetz's dHash: bit by bit, whether a cell of a 9 x 8 grey thumbnail is brighter than its right
    neighbor, here by more than 4 of 255, so that the noise of compression on a white background says nothing.
    """
    small = image if image.size == THUMBNAIL else image.resize(THUMBNAIL, Image.Resampling.BOX)
    grey = small.convert("L").reduce(4).tobytes()
    bits = 0
    for left, right in _PAIRS:
        bits = bits << 1 | (grey[left] > grey[right] + _NOISE)
    return f"{bits:016x}", small.reduce((9, 8)).tobytes().hex()
