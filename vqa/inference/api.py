"""VQA as a library.

import vqa
answers = vqa.answer(["mug.jpg", "lamp.jpg"], ["What color is the mug?", "What shape is the lamp?"])
# ["red", "round"]
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from data_prep.outcomes import UserError


def answer(
    images: Sequence[str | Path],
    questions: Sequence[str],
    *,
    weights: str | Path | None = None,
    kind: str = "blip",
    adapter: str | Path | None = None,
) -> list[str]:
    """Answer ``questions[i]`` about the image file ``images[i]``.

    Args:
        images: image files.
        questions: one per image. Repeat an image to ask more about it; it is encoded once.
        weights: hub name or folder of the model; default: the adapter's own base, or Salesforce/blip-vqa-base.
        kind: of the model: blip or vilt.
        adapter: folder of a LoRA adapter that training wrote.

    Raises:
        UserError: unequal lengths, an image that cannot be used, or weights that cannot be loaded.
    """
    from vqa.inference.predict import answer_all, base_of
    from vqa.settings import ModelSettings

    if len(images) != len(questions):
        raise UserError(f"{len(images)} images and {len(questions)} questions: give one question per image.")
    files = [Path(image).resolve() for image in images]
    if not files:
        return []
    root = Path(os.path.commonpath([file.parent for file in files]))  # images are only opened inside an image folder
    asked = [(file.relative_to(root).as_posix(), question) for file, question in zip(files, questions, strict=True)]
    trained = Path(adapter) if adapter else None
    base = weights or base_of(trained) or "Salesforce/blip-vqa-base"
    model = ModelSettings.model_validate({"kind": kind, "weights": str(base)})
    found = answer_all(asked, model, trained, root)
    if found.problems:
        raise UserError("; ".join(found.problems))
    return found.answers
