"""Answers in bulk: images are decoded ahead of the device, and encoded once for all questions and all variants of a model.

A base model and its adapters share the frozen vision tower. So an image is encoded once, and then its questions are answered
once per variant, with peft switching adapters in between.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import torch
from PIL import Image

from data_prep.images.decode import ImageProblem
from data_prep.outcomes import Failed, Ok, Todo, UserError
from data_prep.records import Example, Prediction
from vqa.dataset import open_image
from vqa.evaluation.control import GRAY
from vqa.models.base import Answer, Batch, image_count, model_class
from vqa.models.lora import load_adapter
from vqa.settings import EvaluateSettings, ModelSettings

AHEAD = 3  # batches prepared while one is being answered
DECODERS = max(2, min(8, len(os.sched_getaffinity(0)) // 2))  # threads; half of the cores this process may use
GRAY_IMAGE = Image.new("RGB", (224, 224), (128, 128, 128))


@dataclass(frozen=True, slots=True)
class _Ready:
    """A prepared batch, and the questions that cannot be answered."""

    examples: list[Example]
    batch: Batch | None  # None if there are no examples
    unreadable: dict[str, Failed]  # by question id


class Answerer:
    """A model with its variants, ready to answer.

    Args:
        model: which weights.
        adapters: the adapter's folder by variant; None is the base model.
        settings: decoding, batch size and precision.
        image_root: the folder of the images.
        candidates: the answers that ``decoding: ranking`` chooses from.

    Raises:
        UserError: weights, adapter or image folder are missing, or do not fit each other.
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
            # Ends the task: otherwise each question would be recorded as failed on a node that lacks the mount.
            raise UserError(f"There is no image folder {image_root}. Is it mounted on {socket.gethostname()}?")
        self.adapters, self.settings, self.image_root = dict(adapters), settings, image_root
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.seconds = self.waited = 0.0  # in `process`: in all, and with the device idle for want of a batch
        kind = model_class(model.kind)
        folders = {name: folder for name, folder in adapters.items() if folder is not None}
        extended = {name: kind.adapter_answers(folder) for name, folder in folders.items()}
        if len({tuple(answers) for answers in extended.values()}) > 1:
            raise UserError(
                f"The adapters {', '.join(folders)} classify over different answers: evaluate them separately."
            )
        self.model = kind.load(model, next(iter(extended.values()), ()))
        for name, folder in folders.items():
            load_adapter(self.model, folder, name)
        if settings.decoding == "ranking":
            self.model.set_candidates(candidates)
        if model.features is not None:
            self.model.store_features(model.features)
        self.model.net.to(self.device).eval()
        if settings.compile:
            self.model.compile()

    def process(self, todos: Iterator[Todo[Example]]) -> None:
        """Answer a stream of questions, and record a `Prediction` or a failure for each todo.

        Args:
            todos: those of a question are adjacent, one per variant that lacks its answer; so are the questions about an image.
        """
        began = time.perf_counter()
        waiting: dict[
            str, list[Todo[Example]]
        ] = {}  # by question id; the threads that prepare batches see examples only

        def questions() -> Iterator[Example]:
            for key, group in groupby(todos, key=lambda todo: todo.item.id):
                waiting[key] = list(group)
                yield waiting[key][0].item

        for ready in self._batches(questions()):
            for key, failed in ready.unreadable.items():
                for todo in waiting.pop(key):
                    todo.record(failed)
            if ready.batch is None:
                continue
            lacking = {todo.variant for example in ready.examples for todo in waiting[example.id]}
            variants = [name for name in self.adapters if name in lacking]
            started = time.perf_counter()
            answers = self._within_memory(ready.batch, variants)
            seconds = (time.perf_counter() - started) / (len(ready.examples) * len(variants))
            for place, example in enumerate(ready.examples):
                for todo in waiting.pop(example.id):
                    todo.record(Ok(_prediction(example, answers[todo.variant][place], seconds)))
        assert not waiting, "every question ends as an answer or a failure"
        self.seconds += time.perf_counter() - began

    def answer_batch(self, batch: Batch, variants: Sequence[str] | None = None) -> dict[str, list[Answer]]:
        """The answers by variant (default: all): one per question of a collated batch, whose images are encoded once.

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

    def answer_images(
        self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]]
    ) -> dict[str, list[Answer]]:
        """The answers by variant about images that are open; in order of the images, then of their questions.

        Args:
            images: in RGB.
            questions: those about each image, one or more.
        """
        return self._within_memory(self.model.processor.collate(images, questions), list(self.adapters))

    def _within_memory(self, batch: Batch, variants: Sequence[str]) -> dict[str, list[Answer]]:
        """Answer a batch. If it does not fit in the GPU's memory, halve it, down to one image.

        Raises:
            UserError: a single image does not fit.
        """
        # Leaving the handler first frees the attempt's tensors, which its traceback holds.
        with contextlib.suppress(torch.OutOfMemoryError):
            return self.answer_batch(batch, variants)
        if image_count(batch) == 1:
            raise UserError("The model does not fit on this GPU even with one image: use a GPU with more memory.")
        torch.cuda.empty_cache()
        halves = [self._within_memory(part, variants) for part in self.model.halve(batch)]
        return {name: halves[0][name] + halves[1][name] for name in variants}

    def _adapter(self, variant: str) -> contextlib.AbstractContextManager[object]:
        """A context in which the network has a variant's adapter, or none."""
        if self.adapters[variant] is not None:
            self.model.net.set_adapter(variant)
        elif hasattr(self.model.net, "disable_adapter"):
            return self.model.net.disable_adapter()
        return contextlib.nullcontext()

    def _batches(self, questions: Iterator[Example]) -> Iterator[_Ready]:
        """Batches of whole images, prepared ahead by threads: Pillow releases Python's global lock while it decodes."""
        with ThreadPoolExecutor(DECODERS) as pool:
            waiting: deque[Future[_Ready]] = deque()
            for examples in cut(questions, self.settings.batch_size, AHEAD):
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

    def _open(self, example: Example) -> Image.Image:
        return open_image(self.image_root, example.image_path, example.image_id, example.image_sha256)

    def _prepare(self, examples: Sequence[Example]) -> _Ready:
        """Decode the images of a batch, and turn them and their questions into tensors."""
        good: list[tuple[Image.Image, list[Example]]] = []
        unreadable: dict[str, Failed] = {}
        for path, group in groupby(examples, key=lambda e: e.image_path):
            asked = list(group)
            try:
                image = GRAY_IMAGE if path == GRAY else self._open(asked[0])
                good.append((image, asked))
            except (UserError, OSError, ImageProblem) as error:
                changed = isinstance(error, ImageProblem) and error.reason == "image_changed"
                reason = "image_changed" if changed else "image_unreadable"
                # A file system may recover, so an OSError is worth a retry; an image that does not decode never will.
                failed = Failed(reason, str(error)[:300], retry=isinstance(error, OSError))
                unreadable |= dict.fromkeys((example.id for example in asked), failed)
        batch = None
        if good:
            texts = [[example.question for example in asked] for _, asked in good]
            batch = self.model.processor.collate([image for image, _ in good], texts)
        return _Ready([example for _, asked in good for example in asked], batch, unreadable)


def cut(items: Iterator[Example], size: int, window: int = 1) -> Iterator[list[Example]]:
    """Batches of whole images, closed as soon as they hold ``size`` questions. An image with more questions is in several.

    Within ``window`` batches images are sorted by the length of their longest question, so that less of a batch is padding.
    A wider window saves more, but a task that is asked to stop answers the whole window first.
    """
    groups = (part for _, group in groupby(items, key=lambda e: e.image_path) for part in _parts(group, size))
    while by_length := _take(groups, size * window):
        by_length.sort(key=lambda group: max(len(example.question) for example in group))
        rest = iter(by_length)
        while batch := _take(rest, size):
            yield [example for group in batch for example in group]


def _parts(items: Iterator[Example], size: int) -> Iterator[list[Example]]:
    while part := list(islice(items, size)):
        yield part


def _take(groups: Iterator[list[Example]], count: int) -> list[list[Example]]:
    """The next groups, until they hold ``count`` questions."""
    taken: list[list[Example]] = []
    while sum(map(len, taken)) < count and (group := next(groups, None)) is not None:
        taken.append(group)
    return taken


@contextlib.contextmanager
def compiler_needed() -> Iterator[None]:
    """Turn a failure of torch.compile, which shows at the first call, into a user error.

    Raises:
        UserError: torch cannot compile here; most often there is no C++ compiler.
    """
    from torch._dynamo.exc import BackendCompilerFailed  # takes seconds to import

    try:
        yield
    except BackendCompilerFailed as error:
        words = str(error).splitlines()[0]
        raise UserError(
            f"evaluate.compile: torch cannot compile the network here ({words}). Provide a C++ compiler (module load gcc), or "
            f"leave it off."
        ) from error


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Mixed precision in the type of `precision_of`; weights stay fp32."""
    chosen = precision_of(device, precision)
    return torch.autocast(device.type, chosen) if chosen != torch.float32 else contextlib.nullcontext()


def precision_of(device: torch.device, precision: str) -> torch.dtype:
    """auto: bf16 from Ampere on, fp16 on older GPUs such as a T4, which only emulates bf16, and fp32 on a CPU."""
    if precision == "auto":
        if device.type != "cuda":
            return torch.float32
        # Not torch.cuda.is_bf16_supported(): that is true for emulation too. Ampere is compute capability 8.0.
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def _prediction(example: Example, answer: Answer, seconds: float) -> Prediction:
    return Prediction(
        id=example.id,
        item_id=example.item_id,
        image_id=example.image_id,
        answer=answer.text,
        confidence=round(answer.confidence, 6),
        seconds=round(seconds, 6),
    )
