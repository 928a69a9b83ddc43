"""The contract of a model. A new model is one file in this folder with a ``class Model(base.Model)``; nothing else changes.

A batch holds images and, for each image, its questions, so that an image is encoded once. The processor (a plain object that
can be sent to worker processes) turns both into tensors, the network turns tensors into a loss, the model into answers.
"""

from __future__ import annotations

import contextlib
import importlib
import logging as python_logging
import os
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

from data_prep.outcomes import UserError, unknown_name
from vqa.models import known_models
from vqa.settings import EvaluateSettings, FeatureSettings, ModelSettings, is_hub_name

# pixels: uint8, a row per image; normalized on the device, so that a quarter of the bytes crosses the bus.
# Text tensors: a row per question. image_of_question: (questions,), the row of each question's image, ascending.
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer to one question."""

    text: str
    confidence: float  # the answer's probability as the model sees it, 0 to 1


class Processor(ABC):
    """Turns images and texts into tensors. Holds no weights, so that each worker process can have a copy."""

    tokenizer: Any
    image_processor: Any  # transformers' own; its settings (size, resampling, mean) decide the pixels

    def save(self, folder: Path) -> None:
        """Write the tokenizer and the image processor, as a model's folder has them."""
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)

    @abstractmethod
    def decode_labels(self, labels: torch.Tensor) -> list[str]:
        """The answers that a batch's ``labels`` stand for, to check them before training."""

    @abstractmethod
    def collate(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[Sequence[str]],
        answers: Sequence[Sequence[str]] | None = None,
    ) -> Batch:
        """Make a batch.

        Args:
            images: in RGB.
            questions: the questions about each image, one or more.
            answers: in the shape of ``questions``; omitted for inference.

        Returns:
            ``pixels``, ``image_of_question`` and what else the network's ``forward`` takes; questions are in order of
            their images.
        """


class Model(ABC):
    """A network with what is needed to train it and to answer with it."""

    kind: ClassVar[str]
    oldest_transformers: ClassVar[str] = "5.5"  # version with which this kind works
    lora_targets: ClassVar[tuple[str, ...]]  # layers that get LoRA unless lora.targets names others
    per_image: ClassVar[tuple[str, ...]] = (
        "pixels",
    )  # tensors with a row per image; all others have a row per question
    modules_to_save: ClassVar[tuple[str, ...]] = ()  # layers trained in full and saved with the adapter
    published: ClassVar[dict[str, str]]  # the report's parameter figures, and why ours differ

    net: Any  # an nn.Module: a subclass of transformers' network, possibly wrapped by peft
    processor: Processor

    @classmethod
    @abstractmethod
    def load(cls, settings: ModelSettings, answers: Iterable[str] = ()) -> Model:
        """Load the model on the CPU, in fp32 and eval mode.

        Args:
            settings: which weights.
            answers: the training split's answers, for models that classify over a fixed set of answers.

        Raises:
            UserError: the weights are missing or belong to another model.
        """

    @classmethod
    @abstractmethod
    def make_tiny(cls, folder: Path, vocabulary: Sequence[str]) -> None:
        """Write an untrained tiny model of this kind into a folder: weights, configuration, tokenizer, image processor.

        Args:
            folder: exists and is empty.
            vocabulary: the words that the tokenizer is to know, after `vqa.models.tiny.SPECIAL`.
        """

    def halve(self, batch: Batch) -> tuple[Batch, Batch]:
        """A batch of several images as two, each with the questions about its images."""
        owner, count = batch["image_of_question"], image_count(batch)
        parts = []
        for first, last in ((0, count // 2), (count // 2, count)):
            rows = (owner >= first) & (owner < last)
            part = {
                name: tensor[first:last] if name in self.per_image else tensor[rows] for name, tensor in batch.items()
            }
            part["image_of_question"] = part["image_of_question"] - first
            parts.append(part)
        return parts[0], parts[1]

    @abstractmethod
    def encode(self, batch: Batch) -> Any:
        """Compute what no adapter changes, once for all adapters; None if everything depends on the adapter."""

    @abstractmethod
    def answer(self, batch: Batch, encoded: Any, settings: EvaluateSettings, *, adapted: bool) -> list[Answer]:
        """Answer every question of a batch, in order.

        Args:
            batch: on the device of the network.
            encoded: what `encode` returned for it.
            settings: decoding.
            adapted: whether an adapter is active.
        """

    def set_candidates(self, answers: Sequence[str]) -> None:
        """Set the answers that ``decoding: ranking`` chooses from."""
        raise UserError(f"evaluate.decoding: {self.kind} does not support ranking; use greedy.")

    def store_features(self, settings: FeatureSettings) -> str:
        """Keep on disk what a frozen tower makes of an image, and read it from there; called when the adapters are in place.

        Returns:
            Why a tower's features cannot be kept, in a sentence; "" if they are, or if there is nothing worth keeping.
        """
        return ""

    @abstractmethod
    def compile(self) -> None:
        """Have torch.compile compile the most expensive part at its first use."""

    def lora_layers(self, targets: Sequence[str]) -> list[str]:
        """The layers, as peft takes them, that get LoRA where layers named ``targets`` are asked for."""
        return list(targets)

    @classmethod
    def adapter_answers(cls, folder: Path) -> list[str]:
        """The answers that were added to the base when the adapter in ``folder`` was trained."""
        return []

    def save_extra(self, folder: Path) -> None:  # noqa: B027 - nothing to save is the common case
        """Write what an adapter needs besides its weights."""

    def load_extra(self, folder: Path) -> None:  # noqa: B027 - nothing to read is the common case
        """Apply what `save_extra` wrote next to an adapter, or `Processor.save` next to a model."""

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.net.parameters()).device


def image_count(batch: Batch) -> int:
    """How many images a batch has."""
    return int(batch["image_of_question"][-1]) + 1


def model_class(kind: str) -> type[Model]:
    """The class of a kind of model.

    Raises:
        UserError: unknown kind.
    """
    known = known_models()
    if kind not in known:
        raise UserError(f"models: {unknown_name(kind, known, 'kind of model')}")
    return importlib.import_module(f"vqa.models.{kind}").Model


def load_network(weights: str, network_class: Any, **options: Any) -> Any:
    """Load a network from a folder or the hub, in eval mode.

    Args:
        weights: hub name or folder.
        network_class: a subclass of transformers' network.
        options: of ``from_pretrained``.

    Raises:
        UserError: weights are missing, unreadable or of another model; transformers would make them up.
    """
    try:
        # Without ignore_mismatched_sizes transformers raises before it says which weights differ.
        net, info = network_class.from_pretrained(
            weights, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise missing_weights(weights, error) from error
    # Entries of mismatched_keys are (name, shape, shape) or, in newer versions, the name.
    reshaped = {key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"]}
    if lacking := sorted({*info["missing_keys"], *reshaped}):
        raise UserError(
            f"{weights} holds the weights of another model or size: {len(lacking)} weights of "
            f"{network_class.__mro__[1].__name__} are missing or have another shape (such as {lacking[0]}). Check the "
            f"model's kind and weights in the configuration."
        )
    return net.eval()


def load_parts(weights: str, network_class: Any, image_processor_class: Any) -> tuple[Any, Any, Any]:
    """Load network, tokenizer and image processor from a folder or the hub; the network gets the processor's mean and deviation.

    transformers makes up what is missing: random weights, a tokenizer without words. Here both are errors.

    Args:
        weights: hub name or folder.
        network_class: a subclass of transformers' network.
        image_processor_class: transformers' image processor.

    Raises:
        UserError: something is missing, unreadable or of another model.
    """
    net = load_network(weights, network_class)
    try:
        tokenizer = AutoTokenizer.from_pretrained(weights)
        image_processor = image_processor_class.from_pretrained(weights)
    except (OSError, ValueError, RuntimeError) as error:
        raise missing_weights(weights, error) from error
    # The embedding may have more rows than the tokenizer words: BLIP's [DEC] and [ENC] are ids of the network alone.
    words, rows = len(tokenizer), net.get_input_embeddings().num_embeddings
    if not len(tokenizer.all_special_tokens) < words <= rows:
        raise UserError(
            f"{weights} has no tokenizer that fits its weights: the tokenizer knows {words} words, the embedding has {rows} "
            f"rows. Copy tokenizer.json and tokenizer_config.json (or vocab.txt) of the same model into the folder."
        )
    # Not persistent: they belong to the image processor and are not saved with the weights.
    for name in ("image_mean", "image_std"):
        values = torch.tensor(getattr(image_processor, name)).view(3, 1, 1)
        net.register_buffer(name, values, persistent=False)
    return net.eval(), tokenizer, image_processor


def missing_weights(weights: str, error: Exception) -> UserError:
    """The error for weights that cannot be loaded."""
    words = " ".join(str(error).split())[:200]
    if Path(weights).exists() or not is_hub_name(weights):
        return UserError(f"Cannot load a model from the folder {weights}: {words}")
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    return UserError(
        f"Cannot load {weights}{offline}: {words} On a machine with internet run: launch.py fetch --config ..., or "
        f"download the model and name its folder as weights."
    )


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Hide what libraries print while weights are loaded or saved: progress bars, and warnings that say nothing to the user."""
    shown, level = logging.is_progress_bar_enabled(), python_logging.root.manager.disable
    logging.disable_progress_bar()
    python_logging.disable(python_logging.WARNING)  # DeepSpeed's note that there is no GPU, when peft imports it
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
            yield
    finally:
        python_logging.disable(level)
        if shown:
            logging.enable_progress_bar()
