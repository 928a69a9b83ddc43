"""Answers a few questions right now: for validation during training, and to try a saved model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from data_prep.records import Example
from vqa.dataset import by_image, needed_image
from vqa.evaluation.metrics import exact_match
from vqa.inference.answerer import autocast, cut
from vqa.models.base import Batch, Model
from vqa.settings import EvaluateSettings


@dataclass(frozen=True, slots=True)
class AnsweredSample:
    """A question with the model's answer, as a line of ``validation.jsonl`` lists them."""

    id: str
    question: str
    truth: str
    text: str  # the model's answer
    confidence: float  # 0 to 1
    right: bool  # exact match after normalization


def evaluate_on_samples(
    model: Model, examples: Sequence[Example], image_root: Path, settings: EvaluateSettings, *, adapted: bool = True
) -> list[AnsweredSample]:
    """Answer some questions now, image by image, in order of the images' first appearance.

    Training holds much of the GPU's memory. Where the rest does not suffice the batch size is halved, which changes no answer.
    """
    ordered = [example for group in by_image(examples).values() for example in group]
    training = model.net.training
    model.net.eval()
    try:
        size = settings.batch_size
        while True:
            try:
                return [
                    sample
                    for part in cut(iter(ordered), size)
                    for sample in _answered(model, part, image_root, settings, adapted)
                ]
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            size //= 2  # outside of the handler: its traceback keeps the attempt's tensors alive
            torch.cuda.empty_cache()
    finally:
        model.net.train(training)


def _answered(
    model: Model, examples: Sequence[Example], image_root: Path, settings: EvaluateSettings, adapted: bool
) -> list[AnsweredSample]:
    groups = by_image(examples)
    images = [needed_image(image_root, group[0]) for group in groups.values()]
    batch = model.processor.collate(images, [[e.question for e in group] for group in groups.values()])
    moved: Batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    with torch.inference_mode(), autocast(model.device, settings.precision):
        answers = model.answer(moved, model.encode(moved), settings, adapted=adapted)
    return [
        AnsweredSample(e.id, e.question, e.answer, a.text, a.confidence, bool(exact_match(e.answer, a.text)))
        for e, a in zip(examples, answers, strict=True)
    ]
