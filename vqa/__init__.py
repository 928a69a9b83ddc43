"""Product VQA: models, training, inference, evaluation and report.

As a library::

    model = vqa.load("runs/demo")             # a run, an adapter's folder, or weights
    model.ask("mug.jpg", "What color is it?")  # Answer(text='red', confidence=0.93)

Importing this package does not import torch; what it offers is imported when it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vqa import errors
    from vqa.inference.api import VQAModel, answer, load
    from vqa.models.base import Answer

__all__ = ["Answer", "VQAModel", "answer", "errors", "load"]

_HOME = {
    "Answer": "vqa.models.base",
    "VQAModel": "vqa.inference.api",
    "answer": "vqa.inference.api",
    "load": "vqa.inference.api",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("vqa.errors")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
