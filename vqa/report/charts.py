"""The shapes of the page's plots, in SVG coordinates.

The template draws them and the stylesheet colors them, so that plots follow light and dark mode. Nothing here writes markup.

>>> line_chart("Loss", [("training", [(0, 2.0), (10, 1.0)])]).curves[0].points
'60.0,12.0 616.0,100.0'
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vqa.evaluation.statistics import Calibration

WIDTH, HEIGHT = 640.0, 220.0
LEFT, RIGHT, TOP, BOTTOM = 60.0, 24.0, 12.0, 32.0  # margins around the plot, for the axes' labels

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a chart."""

    name: str
    points: str  # as SVG's polyline takes them
    dots: list[tuple[float, float]]  # where to draw marks; none on a long curve
    last: float  # the last value


@dataclass(frozen=True, slots=True)
class LineChart:
    """Curves over training steps."""

    title: str
    curves: list[Curve]
    x: list[tuple[float, str]]  # ticks: position and label
    y: list[tuple[float, str]]


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a reliability diagram."""

    bin: str  # its number, as the browser of answers filters by it
    x: float
    y: float
    width: float
    height: float
    label: str


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from ``low`` to ``high``."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(title: str, series: Sequence[tuple[str, Points]], top: float = 0.0) -> LineChart | None:
    """A chart that spans all finite points, 0 and ``top``; None if there are fewer than two points."""
    finite = [(name, [(x, y) for x, y in pts if math.isfinite(x) and math.isfinite(y)]) for name, pts in series]
    clean = [(name, _thin(pts)) for name, pts in finite if pts]
    points = [p for _, pts in clean for p in pts]
    if len(points) < 2:
        return None
    x0, x1 = min(x for x, _ in points), max(x for x, _ in points)
    y0, y1 = min(0.0, *(y for _, y in points)), max(top, *(y for _, y in points))
    x1, y1 = (x1 if x1 > x0 else x0 + 1), (y1 if y1 > y0 else y0 + 1)

    def px(x: float) -> float:
        return LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        return TOP + (y1 - y) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)

    return LineChart(
        title=title,
        curves=[
            Curve(
                name=name,
                points=" ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in pts),
                dots=[(px(x), py(y)) for x, y in pts] if len(pts) <= 30 else [],
                last=pts[-1][1],
            )
            for name, pts in clean
        ],
        x=[(px(t), f"{t:g}") for t in ticks(x0, x1)],
        y=[(py(t), f"{t:g}") for t in ticks(y0, y1)],
    )


def _thin(points: Points, most: int = 600) -> Points:
    step = max(1, len(points) // most)
    kept = list(points[::step])
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def training_charts(log: Sequence[Mapping[str, Any]]) -> list[LineChart]:
    """Curves of a training log, whose rows have ``"step"`` and ``"loss"``, or ``"val_loss"`` and ``"val_exact_match"``."""

    def curve(key: str) -> list[tuple[float, float]]:
        numbers = (int, float)
        return [
            (float(row["step"]), float(row[key]))
            for row in log
            if isinstance(row.get("step"), numbers) and isinstance(row.get(key), numbers)
        ]

    charts = (
        line_chart("Loss", [("training", curve("loss")), ("validation", curve("val_loss"))]),
        line_chart("Exact match", [("validation", curve("val_exact_match"))], top=1.0),
    )
    return [chart for chart in charts if chart]


def reliability(calibration: Calibration) -> list[Bar]:
    """Bars in a square of 200 by 200: their height is accuracy, so perfect calibration is the diagonal."""
    return [
        Bar(
            bin=str(round(10 * b.low)),
            x=200 * b.low,
            y=200 - 200 * b.accuracy,
            width=200 * (b.high - b.low) - 2,
            height=200 * b.accuracy,
            label=f"confidence {b.confidence:.2f}, right {b.accuracy:.2f}, {b.questions} questions",
        )
        for b in calibration.bins
    ]
