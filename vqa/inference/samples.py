"""Answers a few questions right now: for validation during training, and to try a saved model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from data_prep.records import Example, by_image
from vqa.dataset import needed_image
from vqa.evaluation.metrics import exact_match
from vqa.inference.answerer import autocast, cut
from vqa.models.base import Batch, Model
from vqa.settings import EvaluateSettings

T = TypeVar("T")


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
    """Answer some questions now, image by image, in order of the images' first appearance."""

    def answered(part: Sequence[Example]) -> list[AnsweredSample]:
        moved = _batch(model, part, image_root, answers=False)
        answers = model.answer(moved, model.encode(moved), settings, adapted=adapted)
        return [
            AnsweredSample(e.id, e.question, e.answer, a.text, a.confidence, bool(exact_match(e.answer, a.text)))
            for e, a in zip(part, answers, strict=True)
        ]

    return _in_batches(model, examples, settings, answered)


def loss_on_samples(
    model: Model, examples: Sequence[Example], image_root: Path, settings: EvaluateSettings
) -> list[float]:
    """The training's loss on some questions (true answers given, no dropout): for each the mean over its batch."""

    def loss(part: Sequence[Example]) -> list[float]:
        return [float(model.net(**_batch(model, part, image_root, answers=True))["loss"])] * len(part)

    return _in_batches(model, examples, settings, loss)


def _in_batches(
    model: Model,
    examples: Sequence[Example],
    settings: EvaluateSettings,
    work: Callable[[Sequence[Example]], list[T]],
) -> list[T]:
    """Results of ``work`` on batches of whole images, in eval mode.

    Training holds much of the GPU's memory. Where the rest does not suffice the batch size is halved, which changes no answer.
    """
    ordered = [example for group in by_image(examples).values() for example in group]
    training = model.net.training
    model.net.eval()
    try:
        size = settings.batch_size
        while True:
            try:
                with torch.inference_mode(), autocast(model.device, settings.precision):
                    return [found for part in cut(iter(ordered), size) for found in work(part)]
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            size //= 2  # outside of the handler: its traceback keeps the attempt's tensors alive
            torch.cuda.empty_cache()
    finally:
        model.net.train(training)


def _batch(model: Model, examples: Sequence[Example], image_root: Path, *, answers: bool) -> Batch:
    groups = by_image(examples).values()
    images = [needed_image(image_root, group[0]) for group in groups]
    truths = [[e.answer for e in group] for group in groups] if answers else None
    batch = model.processor.collate(images, [[e.question for e in group] for group in groups], truths)
    return {name: tensor.to(model.device) for name, tensor in batch.items()}
