"""Product VQA: models, training, inference, evaluation and report.

As a library: ``vqa.answer(images, questions)``. Importing this package does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vqa.inference.api import answer

__all__ = ["answer"]


def __getattr__(name: str) -> Any:
    if name == "answer":
        from vqa.inference.api import answer

        return answer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
