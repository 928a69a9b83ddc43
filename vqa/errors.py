"""What this package raises for mistakes that its caller can mend. The message says what is wrong and what to do."""

from __future__ import annotations

from data_prep.outcomes import UserError as VQAError

__all__ = ["ImageError", "ModelError", "VQAError"]


class ModelError(VQAError):
    """There is no such run, adapter or model, or its parts do not fit each other."""


class ImageError(VQAError):
    """An image cannot be used."""
