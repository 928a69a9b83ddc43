"""The settings of the report.

::

    report: {title: "Shoes, autumn", examples: 12, thumbnails: 400}
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ReportSettings(BaseModel):
    """How much the page holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str = "Product VQA"
    """The heading of the page."""

    examples: int = Field(default=12, ge=0, le=200)
    """Questions shown as fixed by fine-tuning, and as broken by it."""

    thumbnails: int = Field(default=400, ge=0, le=5000)
    """Images embedded in the page, about 4 kB each. The page loads the others from the image folder, if it can reach it."""

    thumbnail_side: int = Field(default=160, ge=32, le=512)
    """Longer side of an embedded image, in pixels."""
