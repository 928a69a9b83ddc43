"""The contract of a model. A new model is one file in this folder with a class ``Model``; nothing else changes.

A batch is a number of images and, for each, its questions: images are encoded once. The processor (a plain object that
travels to worker processes) makes tensors of them, the network turns those into a loss, the model into answers.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import pkgutil
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoTokenizer
from transformers.utils import logging

import vqa.models
from data_prep.outcomes import UserError
from vqa.settings import EvaluateSettings, ModelSettings

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model says to one question."""

    text: str
    confidence: float  # the answer's probability as the model sees it, 0 to 1


class Processor(ABC):
    """Images and texts to tensors; holds no weights, so that worker processes can have a copy."""

    tokenizer: Any
    images: Any  # transformers' image processor, whose settings are saved beside merged weights

    def save(self, folder: Path) -> None:
        """Write the tokenizer and the image processor, as a model's folder has them."""
        self.tokenizer.save_pretrained(folder)
        self.images.save_pretrained(folder)

    @abstractmethod
    def collate(
        self,
        pictures: Sequence[Image.Image],
        questions: Sequence[Sequence[str]],
        answers: Sequence[Sequence[str]] | None = None,
    ) -> Batch:
        """A batch.

        Args:
            images: RGB.
            questions: for each image its questions, one or more.
            answers: the same shape; without them the batch is for answering.

        Returns:
            ``pixels`` as uint8 (normalized on the device) and what else the network's ``forward`` takes; the rows of the
            text tensors are the questions, image by image.
        """


class Model(ABC):
    """A network with all that is needed to train it and to let it answer."""

    kind: ClassVar[str]
    lora_targets: ClassVar[tuple[str, ...]]  # where LoRA goes if the configuration does not say
    modules_to_save: ClassVar[tuple[str, ...]] = ()  # trained whole and saved with the adapter
    published: ClassVar[dict[str, str]]  # the report's parameter figures, and why ours differ

    net: Any  # an nn.Module: transformers' network or a subclass of it, or peft's around it
    processor: Processor

    @classmethod
    @abstractmethod
    def load(cls, settings: ModelSettings, answers: Iterable[str] = ()) -> Model:
        """The model with its weights, on the CPU in fp32, in eval mode.

        Args:
            settings: which weights.
            answers: answers of the training split, for models that choose among known ones.

        Raises:
            UserError: the weights are not there or are another model's.
        """

    @abstractmethod
    def encode(self, batch: Batch) -> Any:
        """What of a batch does not depend on an adapter, computed once for all of them (None if there is nothing)."""

    @abstractmethod
    def answer(self, batch: Batch, encoded: Any, settings: EvaluateSettings, *, adapted: bool) -> list[Answer]:
        """One answer a question, in the batch's order, under the adapter that is active (``adapted``) or none."""

    def set_candidates(self, answers: Sequence[str]) -> None:
        """The closed vocabulary for ``decoding: ranking``."""
        raise UserError(f"evaluate.decoding: {self.kind} has no ranking; use greedy")

    @abstractmethod
    def compile(self) -> None:
        """Compile what takes most of the time, at its first use."""

    @classmethod
    def adapter_answers(cls, folder: Path) -> list[str]:
        """The answers that the model was extended by when the adapter in ``folder`` was trained."""
        return []

    def save_extra(self, folder: Path) -> None:  # noqa: B027 - nothing to save is the common case
        """Write what an adapter needs beside its weights."""

    def load_extra(self, folder: Path) -> None:  # noqa: B027 - nothing to read is the common case
        """Go by what `save_extra` wrote beside an adapter's weights, or `Processor.save` beside a model's."""

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.net.parameters()).device


def known_models() -> list[str]:
    """The files of this folder that hold a model."""
    return sorted(
        m.name for m in pkgutil.iter_modules(vqa.models.__path__) if m.name not in ("base", "attention", "lora", "tiny")
    )


def model_class(kind: str) -> type[Model]:
    """The class of a kind of model.

    Raises:
        UserError: there is no such kind; lists those that there are.
    """
    known = known_models()
    if kind not in known:
        near = difflib.get_close_matches(kind, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"There is no kind of model {kind!r}.{hint} Known: {', '.join(known)}.")
    found: type[Model] = importlib.import_module(f"vqa.models.{kind}").Model
    return found


def load_parts(weights: str, network: Any, images: Any) -> tuple[Any, Any, Any]:
    """Network, tokenizer and image processor from one folder or from the hub.

    transformers fills up what it does not find: another model's weights become random ones, a tokenizer that is not there one
    without words. Here both are errors.

    Args:
        weights: hub name or folder.
        network: transformers' class of the network, or a subclass of it.
        images: transformers' class of the image processor.

    Raises:
        UserError: something is missing or unreadable, or belongs to another model.
    """
    try:
        net, told = network.from_pretrained(weights, output_loading_info=True, ignore_mismatched_sizes=True)
        tokenizer = AutoTokenizer.from_pretrained(weights)
        processor = images.from_pretrained(weights)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise missing_weights(weights, error) from error
    reshaped = {key[0] if isinstance(key, tuple) else key for key in told["mismatched_keys"]}
    if lacking := sorted({*told["missing_keys"], *reshaped}):
        raise UserError(
            f"{weights} holds the weights of another model or another size: {len(lacking)} of the weights that "
            f"{network.__mro__[1].__name__} has are not there in its shape (such as {lacking[0]})."
        )
    words, places = len(tokenizer), net.get_input_embeddings().num_embeddings
    if not len(tokenizer.all_special_tokens) < words <= places:
        raise UserError(
            f"{weights} has no tokenizer for its weights: it knows {words} words, the weights {places}. The files "
            f"tokenizer.json and tokenizer_config.json (or vocab.txt) belong beside them."
        )
    return net, tokenizer, processor


def missing_weights(weights: str, error: Exception) -> UserError:
    """The sentence for weights that cannot be loaded."""
    words = " ".join(str(error).split())[:200]
    if Path(weights).exists() or weights.startswith((".", "/", "~")):
        return UserError(f"Cannot load a model from the folder {weights}: {words}")
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    return UserError(
        f"Cannot load {weights}{offline}: {words} On a machine with internet run: launch.py fetch --config ..., or "
        f"download the model and name its folder as weights."
    )


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Without the bar of reading weights, which takes a second, and without a warning about what peft calls."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
            yield
    finally:
        if shown:
            logging.enable_progress_bar()
