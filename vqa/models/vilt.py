"""ViLT (Kim et al. 2021) for visual question answering: one encoder over the question's words and the image's patches, and a
classifier over known answers.

How this differs from transformers' `ViltForQuestionAnswering`, and why:

- words and patches interact from the first layer on, so only what precedes it can be shared: an image is decoded, cut into
  patches and given position embeddings once for all of its questions;
- patches keep their order and padding is masked. transformers shuffles them and pads with random ones: it draws random numbers
  even in evaluation, and results differ in the last bits from call to call;
- all patches are used, whatever the configuration's ``max_image_length``; transformers samples that many at random.

Shapes: N images, T patches and the image's own token, Q questions, D hidden size.
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
from transformers import ViltConfig, ViltForQuestionAnswering, ViltImageProcessorPil
from transformers.models.vilt.image_processing_pil_vilt import (
    MAX_LONGER_EDGE,
    MAX_SHORTER_EDGE,
    get_resize_output_image_size,
)

from data_prep.files import write_json
from data_prep.normalize import normalize
from data_prep.outcomes import UserError
from vqa.models import base
from vqa.models.attention import attend, keys_values
from vqa.models.base import Answer, Batch, load_parts
from vqa.models.tiny import IMAGE_SIZE, bert_tokenizer
from vqa.settings import EvaluateSettings, ModelSettings

ANSWERS = "answers.json"  # next to an adapter: the answers that were added to the base's labels
UNKNOWN = -100  # an answer that is no label: all targets are 0


class Processor(base.Processor):
    """Gives the pixels of transformers' PIL image processor: the shorter side becomes 384 pixels, the aspect ratio stays."""

    def __init__(
        self, tokenizer: Any, image_processor: Any, patch: int, max_tokens: int, labels: dict[str, int]
    ) -> None:
        self.tokenizer, self.image_processor = tokenizer, image_processor
        self.patch, self.max_tokens, self.labels = patch, max_tokens, labels

    def collate(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[Sequence[str]],
        answers: Sequence[Sequence[str]] | None = None,
    ) -> Batch:
        """See `vqa.models.base.Processor`.

        ``pixels`` has shape (N, 3, H, W) with the largest height and width of the batch; ``patches`` (N, 2) holds the number
        of rows and columns of patches of each image.
        """
        flat = [question for group in questions for question in group]
        text = self.tokenizer(flat, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt")
        resized = [self._resized(image) for image in images]
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

    def decode_labels(self, labels: Tensor) -> list[str]:
        """See `vqa.models.base.Processor`."""
        answers = {number: answer for answer, number in self.labels.items()}
        return [answers.get(number, "") for number in labels.tolist()]

    def _resized(self, image: Image.Image) -> Tensor:
        """uint8, (3, height, width), both a multiple of the patch."""
        shape = np.broadcast_to(np.uint8(0), (3, image.height, image.width))  # takes no memory: only its shape is used
        shorter = self.image_processor.size["shortest_edge"]
        longer = int(MAX_LONGER_EDGE / MAX_SHORTER_EDGE * shorter)
        height, width = get_resize_output_image_size(
            shape, shorter, longer, self.image_processor.size_divisor, input_data_format="channels_first"
        )
        # transformers rounds the short side of a strip (over 20 : 1) down to 0 pixels. Here it keeps one row of patches.
        height, width = max(height, self.patch), max(width, self.patch)
        resized = image.resize((width, height), self.image_processor.resample)
        return torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8).view(height, width, 3).permute(2, 0, 1)


class ImageOnceVilt(ViltForQuestionAnswering):
    """transformers' ViLT, with the same weights and names and a forward pass over images with their questions."""

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
        """The loss and the logits (Q, labels).

        The loss is ViLT's own: binary cross-entropy, summed over the labels and averaged over the questions. VQAv2 has soft
        targets from ten annotators; here the one true answer has target 1.
        """
        logits = self.logits(self.encode_images(pixels, patches), input_ids, attention_mask, image_of_question)
        targets = torch.zeros_like(logits, dtype=torch.float32)
        known = labels != UNKNOWN
        targets[known, labels[known]] = 1.0
        # The function averages over labels too; the factor makes that a sum.
        loss = functional.binary_cross_entropy_with_logits(logits.float(), targets) * logits.shape[1]
        return {"loss": loss, "logits": logits}

    def encode_images(self, pixels: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Embedded patches (N, T, D), of which the first is the image's own token, and their mask (N, T).

        Args:
            pixels: uint8, (N, 3, H, W).
            patches: rows and columns of patches of each image, (N, 2).
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
                # Position embeddings are those of a square of 12 x 12 patches, resized to the image's own grid.
                fitted = functional.interpolate(square, size=(high, wide), mode="bilinear", align_corners=True)[0]
                placed = grid[:, :high, :wide] + fitted
                rows.append(torch.cat([embeddings.cls_token[0] + positions[0, :1], placed.flatten(1).T]))
            states = embeddings.dropout(pad_sequence(rows, batch_first=True))
            states = states + embeddings.token_type_embeddings.weight[1]
        counts = patches.prod(1, keepdim=True) + 1
        return states, torch.arange(states.shape[1], device=states.device) < counts

    def logits(
        self,
        encoded: tuple[Tensor, Tensor],
        input_ids: Tensor,
        attention_mask: Tensor,
        image_of_question: Tensor,
    ) -> Tensor:
        """Scores of all labels, (Q, labels), from what `encode_images` returned and the questions."""
        vilt = self.vilt
        words = vilt.embeddings.text_embeddings(input_ids=input_ids) + vilt.embeddings.token_type_embeddings.weight[0]
        patches, counted = (part.index_select(0, image_of_question) for part in encoded)
        states = torch.cat([words, patches.to(words.dtype)], 1)
        mask = torch.cat([attention_mask.bool(), counted], 1)[:, None, None, :]
        for layer in vilt.encoder.layer:
            attention = layer.attention.attention
            normal = layer.layernorm_before(states)
            mixed = attend(attention, normal, *keys_values(attention, normal), mask)
            states = states + layer.attention.output(mixed, states)
            states = layer.output(layer.intermediate(layer.layernorm_after(states)), states)
        return self.classifier(vilt.pooler(vilt.layernorm(states)))  # the pooler takes the first word's state, [CLS]


class Model(base.Model):
    """ViLT's network, processor and labels.

    Confidence is the sigmoid of the answer's score, which matches the loss: labels do not compete, so they do not sum to 1.
    """

    kind = "vilt"
    per_image = ("pixels", "patches")
    lora_targets = ("query", "key", "value")
    modules_to_save = ("classifier",)
    published: ClassVar[dict[str, str]] = {
        "total": "198 M",
        "trainable": "0.9 M at r = 16",
        "difference": "ViLT-B/32 with its 3,129 answers has 117.6 M parameters. r = 16 on query, key and value trains 884,736; "
        "here the classifier is trained too, since it has to learn the answers of the training split.",
    }

    def __init__(self, net: Any, processor: Processor, known: int) -> None:
        self.net, self.processor = net, processor
        self.known = known  # number of labels of the base; added answers come after them
        self.texts = [net.config.id2label[number] for number in range(net.config.num_labels)]
        self.allowed: Tensor | None = None  # (labels,), boolean: the candidates of ``decoding: ranking``

    @classmethod
    def load(cls, settings: ModelSettings, answers: Iterable[str] = ()) -> Model:
        """See `vqa.models.base.Model`; each of the ``answers`` that is no label yet gets a row of the classifier."""
        net, tokenizer, image_processor = load_parts(settings.weights, ImageOnceVilt, ViltImageProcessorPil)
        known = net.config.num_labels
        extend(net, sorted(set(answers) - set(net.config.label2id)))
        max_tokens = min(net.config.max_position_embeddings, tokenizer.model_max_length)
        labels = dict(net.config.label2id)
        processor = Processor(tokenizer, image_processor, net.config.patch_size, max_tokens, labels)
        return cls(net, processor, known)

    @classmethod
    def make_tiny(cls, folder: Path, vocabulary: Sequence[str]) -> None:
        """See `vqa.models.base.Model`."""
        bert_tokenizer(folder, vocabulary)
        labels = ["yes", "no"]
        config = ViltConfig(
            vocab_size=len(vocabulary),
            hidden_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=192,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            max_position_embeddings=64,
            image_size=IMAGE_SIZE,
            patch_size=16,
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={label: number for number, label in enumerate(labels)},
        )
        net = ViltForQuestionAnswering(config)
        torch.nn.init.trunc_normal_(
            net.vilt.embeddings.position_embeddings, std=0.02
        )  # zeros tell no place from another
        net.save_pretrained(folder)
        ViltImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, size_divisor=16).save_pretrained(folder)

    @classmethod
    def adapter_answers(cls, folder: Path) -> list[str]:
        """The answers that were added when the adapter was trained; none for adapters that were trained elsewhere.

        Raises:
            UserError: the file of answers is damaged.
        """
        file = folder / ANSWERS
        try:
            return list(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else []
        except ValueError as error:
            raise UserError(f"{file} is damaged ({error}): copy the adapter again, or train it anew.") from error

    def save_extra(self, folder: Path) -> None:
        """Write the added answers, in order of their rows in the classifier."""
        write_json(folder / ANSWERS, self.texts[self.known :])

    @property
    def vilt(self) -> ImageOnceVilt:
        """The network without peft's wrapper."""
        inner = self.net.get_base_model() if hasattr(self.net, "get_base_model") else self.net
        assert isinstance(inner, ImageOnceVilt)
        return inner

    def encode(self, batch: Batch) -> Any:
        """The embedded patches, unless an adapter changes the embedding."""
        if any("lora_" in name for name, _ in self.vilt.vilt.embeddings.named_parameters()):
            return None
        return self.vilt.encode_images(batch["pixels"], batch["patches"])

    def compile(self) -> None:
        """Compile the encoder; torch compiles again for each new number of words or patches until it sees them vary."""
        self.vilt.logits = torch.compile(self.vilt.logits)  # type: ignore[method-assign]

    def answer(self, batch: Batch, encoded: Any, settings: EvaluateSettings, *, adapted: bool) -> list[Answer]:
        """See `vqa.models.base.Model`; without an adapter only the base's own labels are possible.

        Raises:
            UserError: ``decoding: beam``, which a classifier does not have.
        """
        if settings.decoding == "beam":
            raise UserError("evaluate.decoding: vilt is a classifier and has no beam search; use greedy.")
        if encoded is None:
            encoded = self.vilt.encode_images(batch["pixels"], batch["patches"])
        text = batch["input_ids"], batch["attention_mask"], batch["image_of_question"]
        scores = self.vilt.logits(encoded, *text).float()
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
        """See `vqa.models.base.Model`; if no candidate is a label, all labels remain."""
        wanted = set(answers)
        self.allowed = torch.tensor([text in wanted for text in self.texts])


def extend(net: ViltForQuestionAnswering, answers: Sequence[str]) -> None:
    """Add a row to the classifier for each new answer.

    An answer that normalizes to a label ("two" and "2") starts with that label's weights. Any other starts with the mean of all
    rows and the lowest of all biases: as unlikely as the rarest label. Zeros would start every new answer at a probability of
    one half.
    """
    if not answers:
        return
    old = net.classifier[3]  # after Linear, LayerNorm and GELU
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
