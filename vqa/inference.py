"""Answers in bulk: pictures decoded ahead, encoded once for all of their questions and for all variants of a model.

A base model and its adapters share the frozen vision tower. So one pass over the pictures answers for all of them: peft
switches the adapter on and off between two readings of the questions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

import torch
from PIL import Image

from data_prep.records import Emit, Example, Failed, Ok, Prediction, UserError
from vqa.dataset import open_picture
from vqa.lora import load_adapter
from vqa.models.base import Answer, Batch, model_class
from vqa.settings import EvaluateSettings, ModelSettings

AHEAD = 3  # batches whose pictures are decoded while one is answered
DECODERS = 2


class Answerer:
    """A model, with and without its adapter, ready to answer.

    Args:
        model: which weights.
        adapters: by variant the adapter's folder; None is the model as it is. At most one is not None.
        settings: how answers are written.
        image_root: the folder of the pictures.
        candidates: answers to choose from under ``decoding: ranking``.

    Raises:
        UserError: weights or adapter are missing, or do not fit.
    """

    def __init__(
        self,
        model: ModelSettings,
        adapters: Mapping[str, Path | None],
        settings: EvaluateSettings,
        image_root: Path,
        candidates: Sequence[str] = (),
    ) -> None:
        folders = [folder for folder in adapters.values() if folder is not None]
        assert len(folders) <= 1, "one adapter at a time"
        self.variants = {name: folder is not None for name, folder in adapters.items()}
        self.settings, self.image_root = settings, image_root
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        kind = model_class(model.kind)
        self.model = kind.load(model, kind.adapter_answers(folders[0]) if folders else ())
        if folders:
            load_adapter(self.model, folders[0])
        if settings.decoding == "ranking":
            self.model.set_candidates(candidates)
        self.model.net.to(self.device).eval()

    def process(
        self,
        items: Iterator[Example],
        emits: Mapping[str, Emit],
        wanted: Callable[[str, str], bool] = lambda variant, key: True,
    ) -> None:
        """Answer a stream of questions.

        Args:
            items: questions; those about one picture follow one another.
            emits: by variant, takes a `Prediction` or a failure for every question.
            wanted: whether a variant still lacks the answer to a question.
        """
        for examples, pictures in self._batches(items):
            good = [e for e in examples if not isinstance(pictures[e.image_path], Exception)]
            for example in examples:
                problem = pictures[example.image_path]
                if isinstance(problem, Exception):
                    for name in self.variants:
                        if wanted(name, example.id):
                            words = str(problem) if isinstance(problem, UserError) else repr(problem)
                            emits[name](example.id, Failed("picture_unreadable", words[:300]))
            if good:
                self._answer(good, pictures, emits, wanted)

    def answer(self, pictures: Sequence[Image.Image], questions: Sequence[Sequence[str]]) -> dict[str, list[Answer]]:
        """By variant, one answer a question, picture by picture."""
        if not pictures:
            return {name: [] for name in self.variants}
        batch = self.model.processor.collate(pictures, questions)
        moved: Batch = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        answers = {}
        with torch.inference_mode(), autocast(self.device, self.settings.precision):
            encoded = self.model.encode(moved)
            for name, adapted in self.variants.items():
                with self._adapter(adapted):
                    answers[name] = self.model.answer(moved, encoded, self.settings, adapted=adapted)
        return answers

    def _adapter(self, active: bool) -> contextlib.AbstractContextManager[object]:
        """The network with or without its adapter."""
        if active or not hasattr(self.model.net, "disable_adapter"):
            return contextlib.nullcontext()
        context: contextlib.AbstractContextManager[object] = self.model.net.disable_adapter()
        return context

    def _answer(
        self,
        examples: Sequence[Example],
        pictures: Mapping[str, Image.Image | Exception],
        emits: Mapping[str, Emit],
        wanted: Callable[[str, str], bool],
    ) -> None:
        groups = [(path, list(group)) for path, group in groupby(examples, key=lambda e: e.image_path)]
        images = [pictures[path] for path, _ in groups]
        started = time.perf_counter()
        answers = self.answer(images, [[e.question for e in group] for _, group in groups])  # type: ignore[arg-type]
        seconds = (time.perf_counter() - started) / (len(examples) * len(self.variants))
        for name, said in answers.items():
            for example, answer in zip(examples, said, strict=True):
                if wanted(name, example.id):
                    emits[name](example.id, Ok(dataclasses.asdict(_prediction(example, answer, seconds))))

    def _batches(self, items: Iterator[Example]) -> Iterator[tuple[list[Example], dict[str, Image.Image | Exception]]]:
        """Whole pictures up to the batch size, their files decoded ahead by threads (Pillow works outside Python's lock)."""
        with ThreadPoolExecutor(DECODERS) as pool:
            waiting: list[tuple[list[Example], dict[str, Future[Image.Image | Exception]]]] = []
            for examples in cut(items, self.settings.batch_size):
                paths = dict.fromkeys(e.image_path for e in examples)
                waiting.append((examples, {path: pool.submit(self._open, path) for path in paths}))
                if len(waiting) > AHEAD:
                    ready, futures = waiting.pop(0)
                    yield ready, {path: future.result() for path, future in futures.items()}
            for ready, futures in waiting:
                yield ready, {path: future.result() for path, future in futures.items()}

    def _open(self, path: str) -> Image.Image | Exception:
        try:
            return open_picture(self.image_root, path)
        except (UserError, OSError, ValueError, Image.DecompressionBombError) as error:
            return error


def cut(items: Iterator[Example], size: int) -> Iterator[list[Example]]:
    """Batches of whole pictures: closed as soon as they hold ``size`` questions."""
    batch: list[Example] = []
    for _, group in groupby(items, key=lambda e: e.image_path):
        batch.extend(group)
        if len(batch) >= size:
            yield batch
            batch = []
    if batch:
        yield batch


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Mixed precision as `precision_of` says; weights stay fp32."""
    chosen = precision_of(device, precision)
    return torch.autocast(device.type, chosen) if chosen != torch.float32 else contextlib.nullcontext()


def precision_of(device: torch.device, precision: str) -> torch.dtype:
    """auto: bf16 from Ampere on, fp16 on older GPUs such as a T4 (which only emulates bf16), fp32 on a CPU."""
    if precision == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def _prediction(example: Example, answer: Answer, seconds: float) -> Prediction:
    return Prediction(
        id=example.id,
        item_id=example.item_id,
        image_id=example.image_id,
        question=example.question,
        truth=example.answer,
        answer=answer.text,
        confidence=round(answer.confidence, 6),
        seconds=round(seconds, 6),
    )
