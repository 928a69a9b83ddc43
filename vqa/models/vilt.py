"""ViLT (Kim et al. 2021) for visual question answering: one encoder reads the question's words and the image's patches side
by side, and a classifier chooses among known answers.

Where this differs from calling transformers' `ViltForQuestionAnswering` directly, and why:

- words and patches meet in the first layer, so only what comes before it can be shared: an image is decoded, cut into patches
  and given its positions once, for all of its questions;
- patches keep their places and padding is masked. transformers shuffles them and fills up with random ones, which draws random
  numbers even in evaluation and rounds differently each time;
- all patches are used, whatever the configuration's ``max_image_length``; transformers draws that many of them at random.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import ViltForQuestionAnswering, ViltImageProcessorPil
from transformers.models.vilt.image_processing_pil_vilt import (
    MAX_LONGER_EDGE,
    MAX_SHORTER_EDGE,
    get_resize_output_image_size,
)

from data_prep.files import write_json
from data_prep.outcomes import UserError
from vqa.models import base
from vqa.models.attention import attend, keys_values
from vqa.models.base import Answer, Batch, load_parts
from vqa.normalize import normalize
from vqa.settings import EvaluateSettings, ModelSettings

ANSWERS = "answers.json"  # beside an adapter: the answers that the model was extended by
UNKNOWN = -100


class Processor(base.Processor):
    """Pinned to transformers' PIL image processor: the shorter side becomes 384 pixels, the other keeps the proportion."""

    def __init__(self, tokenizer: Any, images: Any, patch: int, longest: int, labels: dict[str, int]) -> None:
        self.tokenizer, self.images, self.patch, self.longest, self.labels = tokenizer, images, patch, longest, labels

    def collate(
        self,
        pictures: Sequence[Image.Image],
        questions: Sequence[Sequence[str]],
        answers: Sequence[Sequence[str]] | None = None,
    ) -> Batch:
        """See `vqa.models.base.Processor`.

        ``pixels`` has shape (images, 3, H, W) with the largest height and width of the batch, ``patches`` (images, 2) says
        how many rows and columns of patches each image has.
        """
        flat = [question for group in questions for question in group]
        text = self.tokenizer(flat, padding=True, truncation=True, max_length=self.longest, return_tensors="pt")
        resized = [self._resized(image) for image in pictures]
        sizes = torch.tensor([side.shape[1:] for side in resized])
        height, width = sizes.amax(0).tolist()
        batch = {
            "pixels": torch.stack(
                [functional.pad(side, (0, width - side.shape[2], 0, height - side.shape[1])) for side in resized]
            ),
            "patches": sizes // self.patch,
            "input_ids": text["input_ids"],
            "attention_mask": text["attention_mask"],
            "image_of_question": torch.repeat_interleave(torch.tensor([len(group) for group in questions])),
        }
        if answers is not None:
            known = [self.labels.get(answer, UNKNOWN) for group in answers for answer in group]
            batch["labels"] = torch.tensor(known)
        return batch

    def _resized(self, image: Image.Image) -> Tensor:
        """uint8, (3, height, width), both a multiple of the patch."""
        shape = np.broadcast_to(np.uint8(0), (3, image.height, image.width))  # only its shape is looked at
        shorter = self.images.size["shortest_edge"]
        longer = int(MAX_LONGER_EDGE / MAX_SHORTER_EDGE * shorter)
        height, width = get_resize_output_image_size(
            shape, shorter, longer, self.images.size_divisor, input_data_format="channels_first"
        )
        # Of a strip more than 20 times as long as wide transformers would leave nothing; here one row of patches stays.
        height, width = max(height, self.patch), max(width, self.patch)
        resized = image.resize((width, height), self.images.resample)
        return torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8).view(height, width, 3).permute(2, 0, 1)


class ImageOnceVilt(ViltForQuestionAnswering):
    """transformers' ViLT with the same weights and names, and a forward pass that takes images with their questions."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.register_buffer("image_mean", torch.zeros(3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.ones(3, 1, 1), persistent=False)

    def forward(  # type: ignore[override]  # images with their questions instead of pairs
        self,
        pixels: Tensor,
        patches: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_of_question: Tensor,
        labels: Tensor,
        **_: Any,
    ) -> dict[str, Tensor]:
        """The loss of a batch and the logits (Q, labels).

        The loss is that of ViLT's own training: binary cross-entropy with soft targets, summed over the labels and averaged
        over the questions. There is one true answer here, with target 1.
        """
        logits = self.logits(self.encode_images(pixels, patches), input_ids, attention_mask, image_of_question)
        targets = torch.zeros_like(logits, dtype=torch.float32)
        known = labels != UNKNOWN
        targets[known, labels[known]] = 1.0
        loss = functional.binary_cross_entropy_with_logits(logits.float(), targets) * logits.shape[1]
        return {"loss": loss, "logits": logits}

    def encode_images(self, pixels: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Embedded patches (P, T, D), the first of them the image's own token, and which of them count, (P, T).

        Args:
            pixels: uint8, (P, 3, H, W).
            patches: rows and columns of patches that belong to each image, (P, 2).
        """
        embeddings = self.vilt.embeddings
        trained = any(parameter.requires_grad for parameter in embeddings.parameters())
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            normal = (pixels.float() / 255 - self.image_mean) / self.image_std
            grids = embeddings.patch_embeddings(normal)
            side = self.config.image_size // self.config.patch_size
            positions = embeddings.position_embeddings
            square = positions[:, 1:].transpose(1, 2).reshape(1, -1, side, side)
            rows = []
            for grid, (high, wide) in zip(grids, patches.tolist(), strict=True):
                fitted = functional.interpolate(square, size=(high, wide), mode="bilinear", align_corners=True)[0]
                placed = grid[:, :high, :wide] + fitted
                rows.append(torch.cat([embeddings.cls_token[0] + positions[0, :1], placed.flatten(1).T]))
            states = embeddings.dropout(pad_sequence(rows, batch_first=True))
            states = states + embeddings.token_type_embeddings.weight[1]
        counts = patches.prod(1, keepdim=True) + 1
        return states, torch.arange(states.shape[1], device=states.device) < counts

    def logits(
        self,
        pictures: tuple[Tensor, Tensor],
        input_ids: Tensor,
        attention_mask: Tensor,
        image_of_question: Tensor,
    ) -> Tensor:
        """Scores of all labels, (Q, labels)."""
        vilt = self.vilt
        words = vilt.embeddings.text_embeddings(input_ids=input_ids) + vilt.embeddings.token_type_embeddings.weight[0]
        patches, counted = (part.index_select(0, image_of_question) for part in pictures)
        states = torch.cat([words, patches.to(words.dtype)], 1)
        mask = torch.cat([attention_mask.bool(), counted], 1)[:, None, None, :]
        for layer in vilt.encoder.layer:
            attention = layer.attention.attention
            normal = layer.layernorm_before(states)
            mixed = attend(attention, normal, *keys_values(attention, normal), mask)
            states = states + layer.attention.output(mixed, states)
            states = layer.output(layer.intermediate(layer.layernorm_after(states)), states)
        scores: Tensor = self.classifier(vilt.pooler(vilt.layernorm(states)))
        return scores


class Model(base.Model):
    """ViLT with everything around it.

    Confidence is the sigmoid of the answer's score, as trained: one label's probability, not a share of all.
    """

    kind = "vilt"
    lora_targets = ("query", "key", "value")
    modules_to_save = ("classifier",)
    published: ClassVar[dict[str, str]] = {
        "total": "198 M",
        "trainable": "0.9 M at r = 16",
        "difference": "ViLT-B/32 with its 3,129 answers has 117.6 M parameters. r = 16 on query, key and value trains 884,736; "
        "here the classifier is trained as well, since it has to learn the answers of the training split.",
    }

    def __init__(self, net: Any, processor: Processor, known: int) -> None:
        self.net, self.processor = net, processor
        self.known = known  # labels that the weights came with; those after them are new
        self.texts = [net.config.id2label[number] for number in range(net.config.num_labels)]
        self.allowed: Tensor | None = None

    @classmethod
    def load(cls, settings: ModelSettings, answers: Iterable[str] = ()) -> Model:
        """See `vqa.models.base.Model`; ``answers`` that are no labels yet get a row of the classifier each."""
        net, tokenizer, images = load_parts(settings.weights, ImageOnceVilt, ViltImageProcessorPil)
        known = net.config.num_labels
        extend(net, sorted(set(answers) - set(net.config.label2id)))
        net.image_mean.copy_(torch.tensor(images.image_mean).view(3, 1, 1))
        net.image_std.copy_(torch.tensor(images.image_std).view(3, 1, 1))
        longest = min(net.config.max_position_embeddings, tokenizer.model_max_length)
        processor = Processor(tokenizer, images, net.config.patch_size, longest, dict(net.config.label2id))
        return cls(net.eval(), processor, known)

    @classmethod
    def adapter_answers(cls, folder: Path) -> list[str]:
        """The answers that the model was extended by when the adapter was trained; none for adapters from elsewhere.

        Raises:
            UserError: the file of answers is damaged.
        """
        file = folder / ANSWERS
        try:
            return list(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else []
        except ValueError as error:
            raise UserError(f"{file} is damaged ({error}): the adapter cannot be used without it.") from error

    def save_extra(self, folder: Path) -> None:
        """Write the answers that were added, in the order of their rows."""
        write_json(folder / ANSWERS, self.texts[self.known :])

    @property
    def vilt(self) -> ImageOnceVilt:
        """The network itself, whether or not peft is around it."""
        inner = self.net.get_base_model() if hasattr(self.net, "get_base_model") else self.net
        assert isinstance(inner, ImageOnceVilt)
        return inner

    def encode(self, batch: Batch) -> Any:
        """The embedded patches, unless an adapter reaches them."""
        if any("lora_" in name for name, _ in self.vilt.vilt.embeddings.named_parameters()):
            return None
        return self.vilt.encode_images(batch["pixels"], batch["patches"])

    def compile(self) -> None:
        """Everything after the patches; once for each number of texts and patches that is not seen to vary."""
        self.vilt.logits = torch.compile(self.vilt.logits)  # type: ignore[method-assign]

    def answer(self, batch: Batch, encoded: Any, settings: EvaluateSettings, *, adapted: bool) -> list[Answer]:
        """See `vqa.models.base.Model`; without its adapter the model chooses among the labels that it came with.

        Raises:
            UserError: ``decoding: beam``; a classifier writes no words.
        """
        if settings.decoding == "beam":
            raise UserError("evaluate.decoding: vilt chooses an answer and writes none, so it has no beam; use greedy")
        pictures = self.vilt.encode_images(batch["pixels"], batch["patches"]) if encoded is None else encoded
        scores = self.vilt.logits(
            pictures, batch["input_ids"], batch["attention_mask"], batch["image_of_question"]
        ).float()
        if not adapted:
            scores[:, self.known :] = -torch.inf
        if self.allowed is not None:
            allowed = self.allowed.to(scores.device)
            if not adapted:
                allowed = allowed & (torch.arange(len(allowed), device=scores.device) < self.known)
            scores = scores.masked_fill(~allowed, -torch.inf) if bool(allowed.any()) else scores
        best = scores.max(-1)
        return [
            Answer(self.texts[label], float(chance))
            for label, chance in zip(best.indices.tolist(), best.values.sigmoid(), strict=True)
        ]

    def set_candidates(self, answers: Sequence[str]) -> None:
        """Labels to choose from under ``decoding: ranking``; where none of them is known, all labels remain."""
        wanted = set(answers)
        self.allowed = torch.tensor([text in wanted for text in self.texts])


def extend(net: ViltForQuestionAnswering, answers: Sequence[str]) -> None:
    """Give the classifier a row for each new answer.

    An answer that only differs in writing from a label ("two" and "2") begins with that label's weights. Any other one begins with
    the mean of all rows and a bias below all of theirs: as unlikely as the rarest label, until training says otherwise. Zeros
    would put every new answer at a probability of one half.
    """
    if not answers:
        return
    old = net.classifier[3]
    assert isinstance(old, nn.Linear)
    labels = dict(net.config.label2id)
    alike = {normalize(label): number for label, number in labels.items()}
    new = nn.Linear(old.in_features, old.out_features + len(answers))
    with torch.no_grad():
        new.weight[: old.out_features], new.bias[: old.out_features] = old.weight, old.bias
        for row, answer in enumerate(answers, old.out_features):
            like = alike.get(normalize(answer))
            new.weight[row] = old.weight.mean(0) if like is None else old.weight[like]
            new.bias[row] = old.bias.min() if like is None else old.bias[like]
    net.classifier[3] = new
    net.num_labels = net.config.num_labels = new.out_features
    net.config.label2id = labels | {answer: row for row, answer in enumerate(answers, old.out_features)}
    net.config.id2label = {number: label for label, number in net.config.label2id.items()}
