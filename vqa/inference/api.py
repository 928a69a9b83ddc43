"""VQA as a library: load a model once, then ask it.

::

    import vqa
    model = vqa.load("runs/demo")                                    # a run, an adapter's folder, or weights
    model.ask("mug.jpg", "What color is the mug?")                   # Answer(text='red', confidence=0.93)
    model.ask("mug.jpg", ["What color is it?", "Is it round?"])      # a list of two; the image is encoded once
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, overload

from PIL import Image

from data_prep.images.decode import MOST_PIXELS, ImageProblem, decode, normalized
from vqa.errors import ImageError, ModelError, VQAError
from vqa.inference.source import Source, find_model

if TYPE_CHECKING:
    import numpy as np

    from vqa.models.base import Answer
    from vqa.settings import EvaluateSettings

    ImageLike: TypeAlias = str | Path | Image.Image | np.ndarray

VARIANT = "asked"


class VQAModel:
    """A model that is loaded and answers questions about images; made by `load`.

    Attributes:
        source: which weights and adapter it was made from.
    """

    def __init__(self, source: Source, settings: EvaluateSettings | None = None) -> None:
        from vqa.inference.answerer import Answerer  # torch takes seconds to import
        from vqa.models.base import quiet_loading
        from vqa.settings import EvaluateSettings

        self.source = source
        try:
            with quiet_loading():
                # Images are handed over, so the folder is never looked into.
                self._answerer = Answerer(
                    source.model, {VARIANT: source.adapter}, settings or EvaluateSettings(), Path.cwd()
                )
        except VQAError as error:
            raise ModelError(str(error)) from error

    def __repr__(self) -> str:
        adapter = "" if self.source.adapter is None else f", adapter {self.source.adapter}"
        return f"<VQAModel {self.source.model.kind}: {self.source.model.weights}{adapter}>"

    @overload
    def ask(self, image: ImageLike, question: str) -> Answer: ...
    @overload
    def ask(self, image: ImageLike, question: list[str] | tuple[str, ...]) -> list[Answer]: ...
    def ask(self, image: ImageLike, question: str | list[str] | tuple[str, ...]) -> Answer | list[Answer]:
        """Answer one question about an image, or several; the image is encoded once.

        Args:
            image: a file, a PIL image of any mode, or an array (height, width, 3) or (height, width) of uint8, RGB or gray.
            question: one, or a list of N.

        Returns:
            An answer with ``text`` and ``confidence`` (0 to 1); for a list of N questions a list of N, in their order.

        Raises:
            ImageError: the image cannot be used.
        """
        questions = [question] if isinstance(question, str) else list(question)
        (answers,) = self._answer([(open_image(image), questions)])
        return answers[0] if isinstance(question, str) else answers

    def ask_many(self, asked: Iterable[tuple[ImageLike, Sequence[str]]]) -> Iterator[list[Answer]]:
        """Answer a stream of (image, questions); what does not depend on each other is computed in batches.

        Args:
            asked: an image as for `ask`, with a list of questions about it.

        Yields:
            For each image, in order, a list with one answer a question.

        Raises:
            ImageError: an image cannot be used; the message names it or its place. What came before it was yielded.
        """
        batch: list[tuple[Image.Image, list[str]]] = []
        for place, (image, questions) in enumerate(asked):
            if isinstance(questions, str):
                raise VQAError(f"ask_many takes a list of questions about each image, not {questions!r}.")
            try:
                batch.append((open_image(image), list(questions)))
            except ImageError as error:
                yield from self._answer(batch)
                raise ImageError(f"image {place + 1}: {error}") from error
            if sum(len(texts) for _, texts in batch) >= self._answerer.settings.batch_size:
                yield from self._answer(batch)
                batch = []
        yield from self._answer(batch)

    def _answer(self, batch: Sequence[tuple[Image.Image, list[str]]]) -> Iterator[list[Answer]]:
        asked = [(image, questions) for image, questions in batch if questions]
        answers = iter(self._answerer.answer_images(*zip(*asked, strict=True))[VARIANT] if asked else ())
        for _, questions in batch:
            yield [next(answers) for _ in questions]


def open_image(image: ImageLike) -> Image.Image:
    """An image as the models see it: RGB, upright, transparent parts white.

    Raises:
        ImageError: it cannot be used.
    """
    if isinstance(image, str | Path):
        try:
            return decode(Path(image).read_bytes(), MOST_PIXELS)[0]
        except FileNotFoundError:
            raise ImageError(f"There is no image {image}.") from None
        except (OSError, ImageProblem) as error:
            raise ImageError(f"{image} cannot be used: {error}") from error
    if isinstance(image, Image.Image):
        return normalized(image)
    shape, kind = getattr(image, "shape", None), str(getattr(image, "dtype", ""))
    if shape is None:
        raise ImageError(f"An image is a path, a PIL image or an array, not {type(image).__name__}.")
    if kind != "uint8" or not (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)) or 0 in shape:
        raise ImageError(
            f"An array must be (height, width, 3) or (height, width) of uint8, RGB or gray, not {tuple(shape)} of {kind}."
        )
    return Image.fromarray(image).convert("RGB")


def load(source: str | Path | None = None, *, model: str | None = None, weights: str | Path | None = None) -> VQAModel:
    """Load a model once, to ask it any number of times.

    Args:
        source: a run's folder, an adapter's folder, or weights: a folder or a name on the hub. Default: published BLIP.
        model: which one of a run with several; or the kind (blip, vilt) where nothing else says it.
        weights: the base to use instead of the adapter's own.

    Raises:
        ModelError: it is not there, or its parts do not fit each other.
    """
    return VQAModel(find_model(source, model=model, weights=weights))


def answer(
    images: Sequence[str | Path],
    questions: Sequence[str],
    *,
    weights: str | Path | None = None,
    kind: str | None = None,
    adapter: str | Path | None = None,
) -> list[str]:
    """Answer ``questions[i]`` about the image file ``images[i]``, loading the model for this call alone: see `load`.

    Args:
        images: N image files.
        questions: N, one per image. Repeat an image to ask more about it; it is encoded once.
        weights: hub name or folder of the model; default: the adapter's own base, or Salesforce/blip-vqa-base.
        kind: of the model: blip or vilt; default: what adapter or weights say.
        adapter: folder of a LoRA adapter that training wrote, or of its run.

    Returns:
        N answers, in the order of the questions.

    Raises:
        VQAError: unequal lengths, an image that cannot be used, or weights that cannot be loaded.
    """
    from vqa.inference.predict import answer_all

    if len(images) != len(questions):
        raise VQAError(f"{len(images)} images and {len(questions)} questions: give one question per image.")
    files = [Path(image).resolve() for image in images]
    if not files:
        return []
    root = Path(os.path.commonpath([file.parent for file in files]))  # images are only opened inside an image folder
    asked = [(file.relative_to(root).as_posix(), question) for file, question in zip(files, questions, strict=True)]
    found = answer_all(asked, find_model(adapter, model=kind, weights=weights), root)
    if found.problems:
        raise ImageError("; ".join(found.problems))
    return found.answers
