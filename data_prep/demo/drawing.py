"""Draws made-up products: what one looks like (`Look`), and the image of it.

>>> draw(Look("mug", "red", "striped", "two", "")).size
(256, 256)

Everything asked about a product stays visible at 64 pixels, so that a small model can learn it: few, wide stripes,
distinct colors, at most three pieces. Position, size, tilt, light and background vary from image to image.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageChops, ImageDraw, ImageFilter

COLORS = {
    "red": (206, 44, 48),
    "orange": (240, 134, 30),
    "yellow": (244, 208, 50),
    "green": (52, 150, 76),
    "blue": (40, 92, 196),
    "purple": (128, 62, 164),
    "pink": (240, 138, 178),
    "black": (46, 46, 50),
}
PATTERNS = ("plain", "striped", "dotted", "checkered")
COUNTS = {"one": 1, "two": 2, "three": 3}
SHAPES = {"cushion": ("round", "square", "star", "heart"), "rug": ("round", "square", "hexagonal")}
NOUNS = ("mug", "lamp", "vase", "shirt", "bag", "chair", "cushion", "rug")

_BACKGROUNDS = ((250, 250, 250), (238, 234, 228), (226, 234, 240), (234, 240, 228), (244, 232, 228), (232, 230, 242))
_SIDE = 256
_SCALE = 2  # drawn at twice the size and reduced, for smooth edges
_METAL = (120, 116, 112)
_WOOD = (150, 108, 72)
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Look:
    """What can be seen of a product."""

    noun: str
    color: str
    pattern: str
    count: str
    shape: str  # "" for products that come in one shape only
    seed: int = field(default=0)  # of everything that no question asks about: place, tilt, light, background


def random_look(rng: random.Random) -> Look:
    """A product drawn uniformly from everything that the catalogue has."""
    noun = rng.choice(NOUNS)
    return Look(
        noun=noun,
        color=rng.choice(list(COLORS)),
        pattern=rng.choice(PATTERNS),
        count=rng.choice(list(COUNTS)),
        shape=rng.choice(SHAPES[noun]) if noun in SHAPES else "",
        seed=rng.getrandbits(32),
    )


def draw(look: Look) -> Image.Image:
    """The product's image: RGB, 256 x 256 pixels."""
    rng = random.Random(look.seed)
    side = _SIDE * _SCALE
    canvas = _background(rng, side)
    number = COUNTS[look.count]
    places, size = _arrangement(number, rng)
    tint = rng.uniform(-14, 14)
    pieces = []
    for x, y in places:
        extent = int(size * side * rng.uniform(0.94, 1.04))
        piece = _piece(look, extent, tint).rotate(rng.uniform(-9, 9), Image.Resampling.BICUBIC)
        pieces.append((piece, (int(x * side - extent / 2), int(y * side - extent / 2))))
    canvas.paste((70, 66, 74), mask=_shadow(pieces, side))
    for piece, corner in pieces:
        canvas.paste(piece, corner, piece)
    return canvas.resize((_SIDE, _SIDE), Image.Resampling.BOX)


def _background(rng: random.Random, side: int) -> Image.Image:
    """A wall that grows darker to one side, and often a floor."""
    wall = Image.new("RGB", (side, side), rng.choice(_BACKGROUNDS))
    if rng.random() < 0.6:
        edge = int(side * rng.uniform(0.6, 0.85))
        ImageDraw.Draw(wall).rectangle((0, edge, side, side), rng.choice(_BACKGROUNDS))
    light = Image.linear_gradient("L").rotate(rng.choice((0, 90, 180, 270))).resize((side, side))
    depth = rng.uniform(0.03, 0.14)
    light = light.point([int(255 - depth * value) for value in range(256)])
    return ImageChops.multiply(wall, Image.merge("RGB", [light] * 3))


def _shadow(pieces: list[tuple[Image.Image, tuple[int, int]]], side: int) -> Image.Image:
    """The pieces' outlines, moved down a little and blurred: at a quarter of the size, since blurring is slow."""
    small = Image.new("L", (side // 4, side // 4))
    for piece, (x, y) in pieces:
        outline = piece.getchannel("A").reduce(4)
        small.paste(100, ((x + side // 50) // 4, (y + side // 34) // 4), outline)
    return small.filter(ImageFilter.GaussianBlur(side / 240)).resize((side, side), Image.Resampling.BILINEAR)


def _arrangement(number: int, rng: random.Random) -> tuple[list[tuple[float, float]], float]:
    """The middles of the pieces and their size, as parts of the image."""
    if number == 1:
        return [(0.5 + rng.uniform(-0.06, 0.06), 0.5 + rng.uniform(-0.06, 0.06))], rng.uniform(0.72, 0.86)
    if number == 2:
        tilt = rng.uniform(-0.12, 0.12)
        return [(0.27, 0.5 - tilt), (0.73, 0.5 + tilt)], rng.uniform(0.46, 0.52)
    top = [(0.27, 0.28), (0.73, 0.28), (0.5 + rng.uniform(-0.14, 0.14), 0.73)]
    return (top if rng.random() < 0.5 else [(x, 1 - y) for x, y in top]), rng.uniform(0.41, 0.46)


def _piece(look: Look, extent: int, tint: float) -> Image.Image:
    """One piece on a transparent square: plain parts first, the patterned body over them."""
    rgb = COLORS[look.color]
    color = tuple(max(0, min(255, int(channel + tint))) for channel in rgb)
    plain = Image.new("RGBA", (extent, extent))
    body = Image.new("L", (extent, extent))
    _OUTLINES[look.noun](look, _Pen(plain, extent), _Pen(body, extent), color)
    fabric = _fabric(look.pattern, color, extent)
    shade = (
        Image.linear_gradient("L").rotate(90).resize((extent, extent)).point([255 - value // 5 for value in range(256)])
    )
    plain.paste(ImageChops.multiply(fabric, Image.merge("RGB", [shade] * 3)), mask=body)
    return plain


def _fabric(pattern: str, color: tuple[int, ...], extent: int) -> Image.Image:
    """A square of the pattern, white on the product's color."""
    cloth = Image.new("RGB", (extent, extent), color)
    pen = ImageDraw.Draw(cloth)
    white = (250, 248, 244)
    if pattern == "striped":
        step = extent / 6
        for i in range(6):
            pen.rectangle((0, (i + 0.62) * step, extent, (i + 1) * step), white)
    elif pattern == "dotted":
        step, radius = extent / 6, extent / 19
        for row in range(7):
            for column in range(7):
                x, y = (column + (row % 2) / 2) * step, row * step
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), white)
    elif pattern == "checkered":
        step = extent / 7
        for row in range(8):
            for column in range(row % 2, 8, 2):
                pen.rectangle((column * step, row * step, (column + 1) * step, (row + 1) * step), white)
    return cloth


class _Pen:
    """Draws in hundredths of the piece's side, whatever its size."""

    def __init__(self, image: Image.Image, extent: int) -> None:
        self._draw = ImageDraw.Draw(image)
        self._unit = extent / 100

    def polygon(self, points: Sequence[tuple[float, float]], fill: object = 255) -> None:
        self._draw.polygon([(x * self._unit, y * self._unit) for x, y in points], fill)  # type: ignore[arg-type]

    def box(self, box: Box, fill: object = 255, radius: float = 0) -> None:
        self._draw.rounded_rectangle([v * self._unit for v in box], radius * self._unit, fill)  # type: ignore[arg-type]

    def ellipse(self, box: Box, fill: object = 255) -> None:
        self._draw.ellipse([v * self._unit for v in box], fill)  # type: ignore[arg-type]

    def arc(self, box: Box, start: float, end: float, fill: object, width: float) -> None:
        self._draw.arc([v * self._unit for v in box], start, end, fill, int(width * self._unit))  # type: ignore[arg-type]

    def around(self, corners: int, radius: float, inner: float = 1.0, turn: float = -90) -> None:
        """A regular polygon about the middle, or a star where every second corner lies further in."""
        steps = corners * 2 if inner != 1.0 else corners
        angles = [math.radians(turn + 360 * i / steps) for i in range(steps)]
        reach = [radius * (inner if i % 2 and inner != 1.0 else 1) for i in range(steps)]
        self.polygon([(50 + r * math.cos(a), 50 + r * math.sin(a)) for r, a in zip(reach, angles, strict=True)])


def _mug(look: Look, plain: _Pen, body: _Pen, color: tuple[int, ...]) -> None:
    plain.arc((58, 32, 96, 72), -100, 100, color, 8)
    body.box((10, 16, 74, 88), radius=9)


def _lamp(look: Look, plain: _Pen, body: _Pen, color: tuple[int, ...]) -> None:
    plain.box((46, 52, 54, 90), _METAL)
    plain.box((26, 88, 74, 96), _METAL, 3)
    body.polygon([(34, 6), (66, 6), (90, 60), (10, 60)])


def _vase(look: Look, plain: _Pen, body: _Pen, color: tuple[int, ...]) -> None:
    right = [(50 + w, y) for y, w in ((4, 18), (12, 14), (24, 12), (38, 24), (56, 33), (74, 30), (88, 20), (96, 16))]
    body.polygon(right + [(100 - x, y) for x, y in reversed(right)])


def _shirt(look: Look, plain: _Pen, body: _Pen, color: tuple[int, ...]) -> None:
    right = [(58, 10), (70, 10), (97, 30), (86, 46), (75, 39), (75, 92)]
    body.polygon([(50, 18), *right, *[(100 - x, y) for x, y in reversed(right)]])


def _bag(look: Look, plain: _Pen, body: _Pen, color: tuple[int, ...]) -> None:
    plain.arc((30, 4, 70, 64), 180, 360, _WOOD, 6)
    body.polygon([(16, 36), (84, 36), (92, 94), (8, 94)])


def _chair(look: Look, plain: _Pen, body: _Pen, color: tuple[int, ...]) -> None:
    for x in (17, 76):
        plain.box((x, 60, x + 7, 98), _WOOD)
    plain.box((32, 60, 38, 86), _WOOD)
    plain.box((62, 60, 68, 86), _WOOD)
    body.box((18, 3, 82, 50), radius=8)
    body.box((10, 54, 90, 70), radius=5)


def _cushion(look: Look, plain: _Pen, body: _Pen, color: tuple[int, ...]) -> None:
    if look.shape == "round":
        body.ellipse((8, 8, 92, 92))
    elif look.shape == "square":
        body.polygon([(6, 6), (50, 12), (94, 6), (88, 50), (94, 94), (50, 88), (6, 94), (12, 50)])
    elif look.shape == "star":
        body.around(5, 49, inner=0.5)
    else:
        body.ellipse((5, 10, 53, 58))
        body.ellipse((47, 10, 95, 58))
        body.polygon([(9, 46), (50, 42), (91, 46), (50, 95)])


def _rug(look: Look, plain: _Pen, body: _Pen, color: tuple[int, ...]) -> None:
    """A cloth that lies inside a pale border."""
    border = (228, 206, 160)
    if look.shape == "round":
        plain.ellipse((2, 2, 98, 98), border)
        body.ellipse((15, 15, 85, 85))
    elif look.shape == "square":
        plain.box((3, 3, 97, 97), border)
        body.box((16, 16, 84, 84))
    else:
        angles = [math.radians(60 * i) for i in range(6)]
        plain.polygon([(50 + 49 * math.cos(a), 50 + 49 * math.sin(a)) for a in angles], border)
        body.around(6, 35, turn=0)


_OUTLINES: dict[str, Callable[[Look, _Pen, _Pen, tuple[int, ...]], None]] = {
    "mug": _mug,
    "lamp": _lamp,
    "vase": _vase,
    "shirt": _shirt,
    "bag": _bag,
    "chair": _chair,
    "cushion": _cushion,
    "rug": _rug,
}
