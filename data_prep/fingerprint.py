"""What a picture looks like in a few bytes: a difference hash for its outlines, a 4 x 4 thumbnail for its colours.

>>> fingerprint(Image.open("mug.jpg").convert("RGB"))
('0c1e3f7e7e3c1800', 'fefefef0e2d1...')

Two files show the same picture (resized, compressed again) if both are close: see `near`. The hash alone is not enough:
products photographed on white share their outlines, so that every shirt of a shop would be one picture.
"""

from __future__ import annotations

from PIL import Image

_COLUMNS, _ROWS = 9, 8  # of the grey thumbnail; each of its rows has eight neighbouring pairs
_CELL = 4  # samples to each side of a cell
_NOISE = 2  # of 255
_PAIRS = [(row * _COLUMNS + x, row * _COLUMNS + x + 1) for row in range(_ROWS) for x in range(_COLUMNS - 1)]


def fingerprint(picture: Image.Image) -> tuple[str, str]:
    """The 64-bit difference hash (16 hex digits) and the colours (96 hex digits) of an RGB picture.

    The hash is Neal Krawetz's dHash: bit by bit, whether a cell of a 9 x 8 grey thumbnail is brighter than its right
    neighbour, here by more than 2 of 255, so that the noise of compression on a white background says nothing.
    """
    # Sampling a grid of single pixels is ten times faster than averaging all of them; the averages that follow take
    # sixteen samples each, which is enough to make the choice of pixels irrelevant.
    small = picture.resize((_COLUMNS * _CELL, _ROWS * _CELL), Image.Resampling.NEAREST)
    grey = small.convert("L").reduce(_CELL).tobytes()
    bits = 0
    for left, right in _PAIRS:
        bits = bits << 1 | (grey[left] > grey[right] + _NOISE)
    return f"{bits:016x}", small.reduce((_COLUMNS, _ROWS)).tobytes().hex()
