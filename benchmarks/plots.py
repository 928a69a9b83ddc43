"""Line plots of throughput. matplotlib is a development dependency: the project itself does not need it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def draw(rows: Sequence[Mapping[str, float]], x_label: str, y_label: str, out: Path) -> None:
    """Draw every column but ``x`` as a line over ``x``; the vertical axis starts at zero."""
    import matplotlib

    matplotlib.use("Agg")  # writes files without a display
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6))
    for name in [name for name in rows[0] if name != "x"]:
        axes.plot([row["x"] for row in rows], [row[name] for row in rows], marker="o", label=name)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    pyplot.close(figure)
