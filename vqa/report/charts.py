"""Plots as inline SVG, in colors of the page's own stylesheet, so that they follow light and dark by themselves.

Built as lists of shapes that the template draws; nothing here writes markup.

>>> line_chart([("loss", [(0, 2.0), (10, 1.0)])])["lines"][0]["points"]
'48.0,12.0 624.0,188.0'
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH, HEIGHT = 640.0, 220.0
LEFT, RIGHT, TOP, BOTTOM = 48.0, 16.0, 12.0, 32.0


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers between two bounds."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(series: Sequence[tuple[str, Sequence[tuple[float, float]]]], unit: str = "") -> dict[str, Any] | None:
    """Curves over steps; None without two finite points. The frame is the hull of the points."""
    clean = [(name, [(x, y) for x, y in pts if math.isfinite(x) and math.isfinite(y)]) for name, pts in series]
    clean = [(name, _thin(pts)) for name, pts in clean if pts]
    points = [p for _, pts in clean for p in pts]
    if len(points) < 2:
        return None
    x0, x1 = min(x for x, _ in points), max(x for x, _ in points)
    y0, y1 = min(y for _, y in points), max(y for _, y in points)
    x1, y1 = (x1 if x1 > x0 else x0 + 1), (y1 if y1 > y0 else y0 + 1)

    def px(x: float) -> float:
        return LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        return TOP + (y1 - y) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)

    return {
        "lines": [
            {
                "name": name,
                "points": " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in pts),
                "dots": [(px(x), py(y)) for x, y in pts] if len(pts) <= 30 else [],
                "last": pts[-1][1],
            }
            for name, pts in clean
        ],
        "x": [(px(t), f"{t:g}") for t in ticks(x0, x1)],
        "y": [(py(t), f"{t:g}") for t in ticks(y0, y1)],
        "unit": unit,
    }


def _thin(points: Sequence[tuple[float, float]], most: int = 600) -> list[tuple[float, float]]:
    step = max(1, len(points) // most)
    kept = list(points[::step])
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def training_charts(log: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Loss and validation curves of the rows of a log.jsonl: ``{"step": 10, "loss": 1.2}``, ``{"step": 50, "eval_loss": …}``.

    Everything else with an ``eval_`` or ``val_`` name between 0 and 1 is drawn as a share.
    """

    def curve(key: str) -> list[tuple[float, float]]:
        numbers = (int, float)
        return [
            (float(row["step"]), float(row[key]))
            for row in log
            if isinstance(row.get("step"), numbers) and isinstance(row.get(key), numbers)
        ]

    keys = sorted({key for row in log for key in row if key.startswith(("eval_", "val_"))})
    losses = [k for k in keys if k.endswith("loss")]
    words = ("exact", "accuracy", "match", "f1")
    shares = [k for k in keys if any(w in k for w in words)]
    charts = [
        ("Loss", line_chart([("training", curve("loss")), *((k.replace("_", " "), curve(k)) for k in losses)])),
        ("Validation", line_chart([(k.replace("_", " "), curve(k)) for k in shares])),
    ]
    return [{"title": title, **chart} for title, chart in charts if chart]


def reliability(calibration: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Bars of a reliability plot in a square of 200: height is accuracy, the diagonal is perfect calibration."""
    return [
        {
            "x": row["from"] * 200,
            "width": (row["to"] - row["from"]) * 200 - 2,
            "height": row["accuracy"] * 200,
            "y": 200 - row["accuracy"] * 200,
            "label": f"confidence {row['confidence']:.2f}, right {row['accuracy']:.2f}, {row['questions']} questions",
        }
        for row in calibration["bins"]
    ]
