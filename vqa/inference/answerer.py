"""Answers in bulk: images decoded ahead, encoded once for all of their questions and for all variants of a model.

A base model and its adapters share the frozen vision tower. So one pass over the images answers for all of them: peft
switches the adapter on and off between two readings of the questions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby, islice
from pathlib import Path

import torch
from PIL import Image

from data_prep.images.decode import ImageProblem
from data_prep.outcomes import Emit, Failed, Ok, UserError
from data_prep.records import Example, Prediction
from vqa.dataset import open_image
from vqa.models.base import Answer, Batch, model_class
from vqa.models.lora import load_adapter
from vqa.settings import EvaluateSettings, ModelSettings

AHEAD = 3  # batches that are made ready while one is answered
DECODERS = max(2, min(8, len(os.sched_getaffinity(0)) // 2))
PER_IMAGE = ("pixels", "patches")  # tensors of a batch with a row an image; the others have a row a question


@dataclasses.dataclass(slots=True)
class _Ready:
    """Questions whose images are decoded: a batch of those that can be answered, and what is wrong with the others."""

    examples: list[Example]
    batch: Batch | None
    unreadable: dict[str, Failed]  # by question id


class Answerer:
    """A model, with and without adapters, ready to answer.

    Args:
        model: which weights.
        adapters: by variant the adapter's folder; None is the model as it is.
        settings: how answers are written.
        image_root: the folder of the images.
        candidates: answers to choose from under ``decoding: ranking``.

    Raises:
        UserError: weights, adapter or image folder are missing, or do not fit.
    """

    def __init__(
        self,
        model: ModelSettings,
        adapters: Mapping[str, Path | None],
        settings: EvaluateSettings,
        image_root: Path,
        candidates: Sequence[str] = (),
    ) -> None:
        if not image_root.is_dir():
            raise UserError(f"There is no image folder {image_root}. Is it mounted on {socket.gethostname()}?")
        self.adapters, self.settings, self.image_root = dict(adapters), settings, image_root
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.seconds = self.waited = 0.0
        kind = model_class(model.kind)
        folders = {name: folder for name, folder in adapters.items() if folder is not None}
        extended = {name: kind.adapter_answers(folder) for name, folder in folders.items()}
        if len({tuple(answers) for answers in extended.values()}) > 1:
            raise UserError(f"The adapters {', '.join(folders)} choose among different answers: evaluate them apart.")
        self.model = kind.load(model, next(iter(extended.values()), ()))
        for name, folder in folders.items():
            load_adapter(self.model, folder, name)
        if settings.decoding == "ranking":
            self.model.set_candidates(candidates)
        self.model.net.to(self.device).eval()
        if settings.compile:
            self.model.compile()

    def process(
        self,
        items: Iterator[Example],
        emits: Mapping[str, Emit],
        wanted: Callable[[str, str], bool] = lambda variant, key: True,
    ) -> None:
        """Answer a stream of questions.

        Args:
            items: questions; those about one image follow one another.
            emits: by variant, takes a `Prediction` or a failure for every question.
            wanted: whether a variant still lacks the answer to a question.
        """
        began = time.perf_counter()
        for ready in self._batches(items):
            for key, failed in ready.unreadable.items():
                for name in self.adapters:
                    if wanted(name, key):
                        emits[name](key, failed)
            names = [name for name in self.adapters if any(wanted(name, e.id) for e in ready.examples)]
            if ready.batch is None or not names:
                continue
            started = time.perf_counter()
            answers = self._within_memory(ready.batch, names)
            seconds = (time.perf_counter() - started) / (len(ready.examples) * len(names))
            for name, said in answers.items():
                for example, answer in zip(ready.examples, said, strict=True):
                    if wanted(name, example.id):
                        emits[name](example.id, Ok(dataclasses.asdict(_prediction(example, answer, seconds))))
        self.seconds += time.perf_counter() - began

    def answer(self, pictures: Sequence[Image.Image], questions: Sequence[Sequence[str]]) -> dict[str, list[Answer]]:
        """By variant, one answer a question, image by image."""
        if not pictures:
            return {name: [] for name in self.adapters}
        return self.answer_batch(self.model.processor.collate(pictures, questions))

    def answer_batch(self, batch: Batch, variants: Sequence[str] | None = None) -> dict[str, list[Answer]]:
        """By variant (without ``variants`` all), one answer a question of a collated batch; its images are encoded once.

        Raises:
            UserError: ``compile`` is on and does not work here.
        """
        moved: Batch = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        answers = {}
        compiling = compiler_needed() if self.settings.compile else contextlib.nullcontext()
        with compiling, torch.inference_mode(), autocast(self.device, self.settings.precision):
            encoded = self.model.encode(moved)
            for name in self.adapters if variants is None else variants:
                with self._adapter(name):
                    adapted = self.adapters[name] is not None
                    answers[name] = self.model.answer(moved, encoded, self.settings, adapted=adapted)
        return answers

    def _within_memory(self, batch: Batch, variants: Sequence[str]) -> dict[str, list[Answer]]:
        """Answer a batch, in two halves where the GPU's memory does not suffice, and so on down to one image.

        Raises:
            UserError: not even one image fits.
        """
        pictures = len(batch["pixels"])
        with contextlib.suppress(torch.OutOfMemoryError):
            return self.answer_batch(batch, variants)
        if pictures == 1:
            raise UserError("The model does not fit on this GPU even with one image: use one with more memory.")
        torch.cuda.empty_cache()
        halves = [self._within_memory(part, variants) for part in halve(batch)]
        return {name: halves[0][name] + halves[1][name] for name in variants}

    def _adapter(self, variant: str) -> contextlib.AbstractContextManager[object]:
        """The network with a variant's adapter, or without any."""
        if self.adapters[variant] is not None:
            self.model.net.set_adapter(variant)
        elif hasattr(self.model.net, "disable_adapter"):
            context: contextlib.AbstractContextManager[object] = self.model.net.disable_adapter()
            return context
        return contextlib.nullcontext()

    def _batches(self, items: Iterator[Example]) -> Iterator[_Ready]:
        """Whole images up to the batch size, decoded and made tensors ahead by threads (Pillow works outside Python's lock).

        ``waited`` sums the seconds in which the next batch was not ready: in which the device had nothing to do.
        """
        with ThreadPoolExecutor(DECODERS) as pool:
            waiting: deque[Future[_Ready]] = deque()
            for examples in cut(items, self.settings.batch_size, AHEAD):
                waiting.append(pool.submit(self._prepare, examples))
                if len(waiting) > AHEAD:
                    yield self._wait(waiting.popleft())
            while waiting:
                yield self._wait(waiting.popleft())

    def _wait(self, coming: Future[_Ready]) -> _Ready:
        started = time.perf_counter()
        ready = coming.result()
        self.waited += time.perf_counter() - started
        return ready

    def _prepare(self, examples: Sequence[Example]) -> _Ready:
        """Decode the images of a batch and make tensors of them and of their questions."""
        good: list[tuple[Image.Image, list[Example]]] = []
        unreadable: dict[str, Failed] = {}
        for path, group in groupby(examples, key=lambda e: e.image_path):
            asked = list(group)
            try:
                good.append((open_image(self.image_root, path), asked))
            except (UserError, OSError, ImageProblem) as error:
                # The file system may have recovered at the next try; an image that does not decode never does.
                failed = Failed("image_unreadable", str(error)[:300], retry=isinstance(error, OSError))
                unreadable |= dict.fromkeys((example.id for example in asked), failed)
        batch = None
        if good:
            texts = [[example.question for example in asked] for _, asked in good]
            batch = self.model.processor.collate([image for image, _ in good], texts)
        return _Ready([example for _, asked in good for example in asked], batch, unreadable)


def halve(batch: Batch) -> tuple[Batch, Batch]:
    """A batch of several images as two, with the questions that belong to each."""
    owner = batch["image_of_question"]
    pictures = len(batch["pixels"])
    half = pictures // 2
    of_images = {name for name, tensor in batch.items() if name in PER_IMAGE}
    parts = []
    for first, last in ((0, half), (half, pictures)):
        rows = (owner >= first) & (owner < last)
        part = {name: tensor[first:last] if name in of_images else tensor[rows] for name, tensor in batch.items()}
        part["image_of_question"] = part["image_of_question"] - first
        parts.append(part)
    return parts[0], parts[1]


def cut(items: Iterator[Example], size: int, window: int = 1) -> Iterator[list[Example]]:
    """Batches of whole images: closed as soon as they hold ``size`` questions. An image with more comes several times.

    Within ``window`` batches, images whose longest questions are about as long come together: less of a batch is padding.
    Wide windows save more, but are all answered before a task that was asked to stop does.
    """
    groups = (part for _, group in groupby(items, key=lambda e: e.image_path) for part in _parts(group, size))
    while pictures := _questions(groups, size * window):
        pictures.sort(key=lambda group: max(len(example.question) for example in group))
        rest = iter(pictures)
        while batch := _questions(rest, size):
            yield [example for group in batch for example in group]


def _parts(items: Iterator[Example], size: int) -> Iterator[list[Example]]:
    while part := list(islice(items, size)):
        yield part


def _questions(groups: Iterator[list[Example]], count: int) -> list[list[Example]]:
    """The next groups, until they hold ``count`` questions."""
    taken: list[list[Example]] = []
    while sum(map(len, taken)) < count and (group := next(groups, None)) is not None:
        taken.append(group)
    return taken


@contextlib.contextmanager
def compiler_needed() -> Iterator[None]:
    """Turns torch.compile's failure, at the first use of what is compiled, into a sentence.

    Raises:
        UserError: most often there is no C++ compiler.
    """
    from torch._dynamo.exc import BackendCompilerFailed  # imports for seconds

    try:
        yield
    except BackendCompilerFailed as error:
        words = str(error).splitlines()[0]
        raise UserError(
            f"evaluate.compile: torch cannot compile the network here ({words}). Load a C++ compiler, such as the module gcc, "
            f"or leave it off."
        ) from error


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
