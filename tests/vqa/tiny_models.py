"""What the tests of models share: tiny networks with random weights, images of several shapes, questions about them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vqa.models.base import Model, model_class
from vqa.models.tiny import make_tiny_model
from vqa.settings import ModelSettings

# Unequal numbers of questions an image, and questions of unequal length.
QUESTIONS = [
    ["What color is the mug?", "Is it round?"],
    ["How many pieces are in this set?"],
    ["Is it red?", "What?", "Which material is the seat of the chair on the left made of?"],
    ["What shape is it?"],
]
ANSWERS = [["red", "yes"], ["two"], ["no", "a wooden chair", "wood"], ["round"]]
SIZES = ((64, 64), (100, 70), (50, 240), (33, 200))  # height, width

WORDS = [text for group in (*QUESTIONS, *ANSWERS) for text in group]


def noise_images(sizes: Sequence[tuple[int, int]] = SIZES) -> list[Image.Image]:
    """Colored noise, so that every pixel matters."""
    noise = np.random.default_rng(0)
    return [Image.fromarray(noise.integers(0, 256, (high, wide, 3), dtype=np.uint8)) for high, wide in sizes]


def make_model(kind: str, folder: Path, answers: Sequence[str] = (), **settings: Any) -> Model:
    """A tiny model whose weights are large enough that a mistake shows in its scores."""
    if not folder.is_dir():
        make_tiny_model(kind, folder, WORDS)
        fresh = model_class(kind).load(ModelSettings(kind=kind, weights=str(folder)))
        torch.manual_seed(1)
        with torch.no_grad():
            for name, parameter in fresh.net.named_parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.15)
                elif "norm" not in name.lower():
                    parameter.normal_(0, 0.05)
        fresh.net.save_pretrained(folder)
    return model_class(kind).load(ModelSettings(kind=kind, weights=str(folder), **settings), answers)
