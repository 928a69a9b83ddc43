"""Draws made-up products: what one looks like (`Look`), and the image of it.

>>> draw(Look("mug", "crimson", "striped", "two", "oval")).size
(256, 256)

Attributes are independent of each other: every kind of product comes in every color, pattern, number and shape. The
shape is the body's outline, the color and pattern its filling, and the kind shows in the parts around it (a handle,
legs, clock hands). All of it stays visible at 64 pixels, so that a small model can learn it. Position, size, tilt,
light and background vary from image to image.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageChops, ImageDraw, ImageFilter

NOUNS = ("mug", "lamp", "tote", "clock", "tray", "stool")
COLORS = {
    "crimson": (206, 40, 44),
    "tangerine": (242, 132, 24),
    "lemon": (246, 214, 50),
    "emerald": (40, 150, 76),
    "navy": (40, 76, 190),
    "plum": (130, 60, 164),
}
PATTERNS = ("plain", "striped", "dotted", "checkered")
COUNTS = {"one": 1, "two": 2, "three": 3}
SHAPES = ("square", "triangular", "oval", "oblong")

_BACKGROUNDS = ((250, 250, 250), (238, 234, 228), (226, 234, 240), (234, 240, 228), (244, 232, 228), (232, 230, 242))
_SCALE = 2  # drawn at twice the size and reduced, for smooth edges
_DARK = (64, 54, 50)
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Look:
    """What can be seen of a product."""

    noun: str
    color: str
    pattern: str
    count: str
    shape: str
    seed: int = field(default=0)  # of everything that no question asks about: place, tilt, light, background


def random_look(rng: random.Random) -> Look:
    """A product whose attributes are drawn uniformly, each independently of the others."""
    return Look(
        noun=rng.choice(NOUNS),
        color=rng.choice(list(COLORS)),
        pattern=rng.choice(PATTERNS),
        count=rng.choice(list(COUNTS)),
        shape=rng.choice(SHAPES),
        seed=rng.getrandbits(32),
    )


def draw(look: Look, size: int = 256) -> Image.Image:
    """The product's image: RGB, a square of ``size`` pixels."""
    rng = random.Random(look.seed)
    side = size * _SCALE
    canvas = _background(rng, side)
    number = COUNTS[look.count]
    places, part = _arrangement(number, rng)
    tint = rng.uniform(-14, 14)
    pieces = []
    for x, y in places:
        extent = int(part * side * rng.uniform(0.94, 1.04))
        piece = _piece(look, extent, tint).rotate(rng.uniform(-6, 6), Image.Resampling.BILINEAR)
        pieces.append((piece, (int(x * side - extent / 2), int(y * side - extent / 2))))
    canvas.paste((70, 66, 74), mask=_shadow(pieces, side))
    for piece, corner in pieces:
        canvas.paste(piece, corner, piece)
    return canvas.resize((size, size), Image.Resampling.BOX)


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
        return [(0.26, 0.5 - tilt), (0.74, 0.5 + tilt)], rng.uniform(0.46, 0.52)
    top = [(0.26, 0.27), (0.74, 0.27), (0.5 + rng.uniform(-0.14, 0.14), 0.74)]
    return (top if rng.random() < 0.5 else [(x, 1 - y) for x, y in top]), rng.uniform(0.45, 0.5)


def _piece(look: Look, extent: int, tint: float) -> Image.Image:
    """One piece on a transparent square: the body in its shape and pattern, the parts that show its kind around it."""
    rgb = COLORS[look.color]
    color = tuple(max(0, min(255, int(channel + tint))) for channel in rgb)
    piece = Image.new("RGBA", (extent, extent))
    body = Image.new("L", (extent, extent))
    parts = _Pen(piece, extent)
    kind = _KINDS[look.noun]
    kind.behind(parts)
    _body(look.shape, kind.box, _Pen(body, extent))
    piece.paste(_fabric(look.pattern, color, extent), mask=body)
    kind.before(parts)
    return piece


def _fabric(pattern: str, color: tuple[int, ...], extent: int) -> Image.Image:
    """A square of the pattern, white on the product's color, a little darker toward the right."""
    cloth = Image.new("RGB", (extent, extent), color)
    pen = ImageDraw.Draw(cloth)
    white = (250, 248, 244)
    if pattern == "striped":
        step = extent / 5
        for i in range(5):
            pen.rectangle((0, (i + 0.55) * step, extent, (i + 1) * step), white)
    elif pattern == "dotted":
        step, radius = extent / 5, extent / 13
        for row in range(6):
            for column in range(6):
                x, y = (column + (row % 2) / 2) * step, row * step
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), white)
    elif pattern == "checkered":
        step = extent / 5
        for row in range(6):
            for column in range(row % 2, 6, 2):
                pen.rectangle((column * step, row * step, (column + 1) * step, (row + 1) * step), white)
    shade = Image.linear_gradient("L").rotate(90).resize((extent, extent)).point([255 - v // 5 for v in range(256)])
    return ImageChops.multiply(cloth, Image.merge("RGB", [shade] * 3))


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


@dataclass(frozen=True)
class _Kind:
    """A kind of product: where its body goes, and what is drawn behind and before that."""

    box: Box
    behind: Callable[[_Pen], None] = lambda pen: None
    before: Callable[[_Pen], None] = lambda pen: None


def _body(shape: str, box: Box, pen: _Pen) -> None:
    """The shapes differ in their proportions: at 64 pixels those are learned sooner than how round a corner is."""
    left, top, right, bottom = box
    x, y, half = (left + right) / 2, (top + bottom) / 2, (right - left) / 2
    if shape == "square":
        pen.box(box, radius=3)
    elif shape == "triangular":
        pen.polygon([(x, top), (right, bottom), (left, bottom)])
    elif shape == "oval":
        pen.ellipse((left, y - 0.5 * half, right, y + 0.5 * half))
    else:
        pen.box((x - 0.42 * half, top, x + 0.42 * half, bottom), radius=3)


def _handle_at_the_side(pen: _Pen) -> None:
    pen.arc((36, 28, 98, 76), 0, 360, _DARK, 11)


def _stand(pen: _Pen) -> None:
    pen.box((45, 40, 55, 94), _DARK)
    pen.box((24, 88, 76, 98), _DARK, 3)


def _handle_on_top(pen: _Pen) -> None:
    pen.arc((28, 2, 72, 76), 0, 360, _DARK, 10)


def _hands(pen: _Pen) -> None:
    pen.ellipse((34, 36, 66, 68), (250, 248, 244))
    pen.box((47, 36, 53, 55), _DARK)
    pen.box((47, 49, 64, 55), _DARK)


def _two_grips(pen: _Pen) -> None:
    for x in (2, 86):
        pen.box((x, 32, x + 12, 70), _DARK, 4)
    pen.box((8, 46, 92, 56), _DARK)


def _legs(pen: _Pen) -> None:
    for x, foot in ((40, 18), (60, 82)):
        pen.polygon([(x - 6, 40), (x + 6, 40), (foot + 6, 98), (foot - 6, 98)], _DARK)


_KINDS = {
    "mug": _Kind((4, 14, 80, 90), behind=_handle_at_the_side),
    "lamp": _Kind((14, 2, 86, 74), behind=_stand),
    "tote": _Kind((12, 24, 88, 98), behind=_handle_on_top),
    "clock": _Kind((8, 8, 92, 92), before=_hands),
    "tray": _Kind((14, 14, 86, 86), behind=_two_grips),
    "stool": _Kind((14, 2, 86, 74), behind=_legs),
}
