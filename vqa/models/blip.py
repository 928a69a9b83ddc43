"""BLIP (Li et al. 2022, arXiv:2201.12086) for visual question answering: an image encoder (ViT), a question encoder with
cross-attention to the image, and a decoder that writes the answer with cross-attention to the question.

How this differs from transformers' `BlipForQuestionAnswering`, and why:

- the vision tower runs once per image, without gradients where it is frozen; keys and values of an image's tokens are also
  computed once per image (`vqa.models.attention`);
- the decoder starts with [DEC] in training as in inference (transformers feeds the labels, which start with [CLS]);
- padding is masked everywhere, also in the decoder's attention to the question (transformers' ``generate`` omits that), so that
  an answer does not depend on the rest of the batch; padded labels do not count in the loss.

Shapes: N images, S pixels a side, T tokens of an image (577 at 384 pixels), Q questions, L question tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import BlipConfig, BlipForQuestionAnswering, BlipImageProcessorPil
from transformers.models.blip.modeling_blip import BlipAttention

from data_prep.files import write_json
from vqa import distributed
from vqa.features.tower import TowerFeatures, is_base
from vqa.models import base
from vqa.models.attention import Fold, attend, keys_values
from vqa.models.base import Answer, Batch, load_parts
from vqa.models.tiny import HEADS, HIDDEN, IMAGE_SIZE, INIT_STD, bert_tokenizer
from vqa.settings import EvaluateSettings, FeatureSettings, ModelSettings

MAX_QUESTION_TOKENS = 40  # ABO's questions have 8 to 12
MAX_ANSWER_TOKENS = 12
IGNORED = -100  # the label that torch's cross entropy skips
PREFIX = "question_prefix.json"  # next to weights that were trained on questions starting with [ENC]


class Processor(base.Processor):
    """Gives the pixels of transformers' PIL image processor; those of the torchvision one differ slightly."""

    def __init__(self, tokenizer: Any, image_processor: Any, size: int, dec_id: int, enc_id: int | None) -> None:
        self.tokenizer, self.image_processor = tokenizer, image_processor
        self.size, self.dec_id, self.enc_id = size, dec_id, enc_id

    def save(self, folder: Path) -> None:
        """Write the tokenizer, the image processor and the questions' first token."""
        super().save(folder)
        self.save_prefix(folder)

    def save_prefix(self, folder: Path) -> None:
        """Write the questions' first token unless it is [CLS], transformers' default."""
        if self.enc_id is not None:
            write_json(folder / PREFIX, {"question_prefix": "enc"})

    def collate(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[Sequence[str]],
        answers: Sequence[Sequence[str]] | None = None,
    ) -> Batch:
        """See `vqa.models.base.Processor`; ``pixels`` has shape (N, 3, S, S)."""
        flat = [question for group in questions for question in group]
        text = self.tokenizer(flat, padding=True, truncation=True, max_length=MAX_QUESTION_TOKENS, return_tensors="pt")
        if self.enc_id is not None:
            text["input_ids"][:, 0] = self.enc_id  # in place of [CLS]
        batch = {
            "pixels": torch.stack([self._pixels(image) for image in images]),
            "input_ids": text["input_ids"],
            "attention_mask": text["attention_mask"],
            "image_of_question": torch.repeat_interleave(torch.tensor([len(group) for group in questions])),
        }
        if answers is not None:
            batch |= self.targets([answer for group in answers for answer in group])
        return batch

    def targets(self, answers: Sequence[str]) -> Batch:
        """Decoder inputs that start with [DEC], and labels with padding ignored. The loss shifts them by one."""
        text = self.tokenizer(
            list(answers), padding=True, truncation=True, max_length=MAX_ANSWER_TOKENS, return_tensors="pt"
        )
        ids = text["input_ids"].clone()
        ids[:, 0] = self.dec_id
        return {"decoder_input_ids": ids, "labels": text["input_ids"].masked_fill(text["attention_mask"] == 0, IGNORED)}

    def decode_labels(self, labels: Tensor) -> list[str]:
        """See `vqa.models.base.Processor`."""
        words: list[str] = self.tokenizer.batch_decode(
            labels.masked_fill(labels == IGNORED, self.tokenizer.pad_token_id), skip_special_tokens=True
        )
        return words

    def _pixels(self, image: Image.Image) -> Tensor:
        square = image.resize((self.size, self.size), self.image_processor.resample)
        # A bytearray, since torch warns of buffers that cannot be written to.
        flat = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8)
        return flat.view(self.size, self.size, 3).permute(2, 0, 1)


class FusedVisionAttention(BlipAttention):
    """The image encoder's attention without its (N, heads, T, T) weights in memory: a sixth of the time."""

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        """(N, T, D) in and out; None stands for the attention weights."""
        count, length, size = hidden_states.shape
        query, key, value = (
            self.qkv(hidden_states).view(count, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        )
        dropout = self.dropout.p if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=self.scale)
        return self.projection(mixed.transpose(1, 2).reshape(count, length, size)), None


class ImageOnceBlip(BlipForQuestionAnswering):
    """transformers' BLIP, with the same weights and names and a forward pass over images with their questions."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.vision_model.encoder.layers:
            layer.self_attn = FusedVisionAttention(config.vision_config)  # the same weights under the same names
        self.stored: TowerFeatures | None = None
        self._last_image: tuple[Tensor, Tensor] | None = (
            None  # pixels (3, S, S) and states (1, T, D); see encode_images
        )

    def forward(  # type: ignore[override]  # images with their questions instead of pairs
        self,
        pixels: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_of_question: Tensor,
        decoder_input_ids: Tensor,
        labels: Tensor,
        **_: Any,
    ) -> dict[str, Tensor]:
        """The loss, a mean over the answers' tokens, and the decoder's logits (Q, answer tokens, vocabulary)."""
        image_states = self.encode_images(pixels)
        states = self.encode_questions(image_states, input_ids, attention_mask, image_of_question)
        logits = self.decode(states, attention_mask, decoder_input_ids)
        loss = functional.cross_entropy(
            logits[:, :-1]
            .flatten(0, 1)
            .float(),  # token t predicts token t + 1; fp32: half precision is too coarse for a softmax
            labels[:, 1:].flatten(),
            ignore_index=IGNORED,
            label_smoothing=self.text_decoder.label_smoothing,
        )
        return {"loss": loss, "logits": logits}

    def encode_images(self, pixels: Tensor) -> Tensor:
        """uint8 pixels (N, 3, S, S) to states (N, T, D), with gradients only if part of the tower is trained.

        Training cuts batches by questions, so the last image of a batch is often the first of the next one. A frozen tower
        keeps that image's states.
        """
        trained = any(parameter.requires_grad for parameter in self.vision_model.parameters())
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            # Under ZeRO-3 all ranks gather each layer's weights together: a rank that skipped an image would hang the others.
            dropped = self.training and self.config.vision_config.attention_dropout
            if self.stored is not None and is_base(self.vision_model) and not dropped:
                return self.stored.encode(pixels, self._states_type(pixels.device), self._vision)
            if trained or not self.training or distributed.count() > 1 or dropped:
                return self._vision(pixels)
            last, self._last_image = self._last_image, None
            known = [last[1]] if last is not None and torch.equal(last[0], pixels[0]) else []
            new = pixels[len(known) :]
            states = torch.cat([*known, *([self._vision(new)] if len(new) else [])])
            self._last_image = pixels[-1].clone(), states[-1:].clone()
            return states

    def _states_type(self, device: torch.device) -> torch.dtype:
        """The type of `encode_images`' states: autocast's, or that of the weights (half precision under DeepSpeed)."""
        if torch.is_autocast_enabled(device.type):
            return torch.get_autocast_dtype(device.type)
        weights: torch.dtype = self.vision_model.embeddings.class_embedding.dtype
        return weights

    def _vision(self, pixels: Tensor) -> Tensor:
        """The tower's states. A frozen one works on one image at a time on a CPU: the last bits of a matrix product depend on its batch size, and an
        image's states must be the same in any batch, kept, stored or fresh."""
        alone = pixels.device.type == "cpu" and not torch.is_grad_enabled()
        parts = pixels.split(1) if alone else [pixels]
        states = []
        for part in parts:
            normal = (part.float() / 255 - self.image_mean) / self.image_std
            normal = normal.to(self.vision_model.embeddings.class_embedding.dtype)
            # The last layer norm gives fp32 under autocast. What follows rounds it anyway, but dropout comes before.
            states.append(self.vision_model(pixel_values=normal).last_hidden_state.to(self._states_type(part.device)))
        return torch.cat(states)

    def encode_questions(
        self, image_states: Tensor, input_ids: Tensor, attention_mask: Tensor, image_of_question: Tensor
    ) -> Tensor:
        """States of the questions after cross-attention to their images, (Q, L, D)."""
        fold = Fold.of(image_of_question, len(image_states))
        length = input_ids.shape[1]
        own = attention_mask.bool()[:, None, None, :]
        states = self.text_encoder.embeddings(input_ids=input_ids)
        for layer in self.text_encoder.encoder.layer:
            attention = layer.attention.self
            mixed = attend(attention, states, *keys_values(attention, states), own)
            states = layer.attention.output(mixed, states)
            cross = layer.crossattention.self
            seen = attend(cross, fold.fold(states), *keys_values(cross, image_states), None)
            states = layer.crossattention.output(fold.unfold(seen, length), states)
            states = layer.feed_forward_chunk(states)
        return states

    def question_memory(self, states: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the encoded questions, a pair per decoder layer; the same for every token of an answer."""
        return [keys_values(layer.crossattention.self, states) for layer in self.text_decoder.bert.encoder.layer]

    def decode(self, states: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor) -> Tensor:
        """Logits (Q, answer tokens, vocabulary) of whole answers (teacher forcing)."""
        return self.decoder_step(self.question_memory(states), attention_mask, decoder_input_ids, None)

    def decoder_step(
        self,
        memory: list[tuple[Tensor, Tensor]],
        attention_mask: Tensor,
        ids: Tensor,
        past: list[tuple[Tensor, Tensor]] | None,
    ) -> Tensor:
        """Logits of ``ids`` (Q, tokens) after the tokens in ``past``.

        ``past`` is the key-value cache: a pair per layer, each (Q, heads, tokens, D / heads), replaced in place. An empty list
        starts one; None keeps none.
        """
        bert = self.text_decoder.bert
        length, begun = ids.shape[1], past[0][0].shape[2] if past else 0
        question = attention_mask.bool()[:, None, None, :]
        causal = None
        if length > 1:
            # Row t may attend to columns 0 … begun + t. A single token may attend to everything, so it needs no mask.
            causal = torch.ones(length, begun + length, dtype=torch.bool, device=ids.device).tril(begun)
        states = bert.embeddings(input_ids=ids, past_key_values_length=begun)
        kept = []
        for number, layer in enumerate(bert.encoder.layer):
            attention = layer.attention.self
            key, value = keys_values(attention, states)
            if past:
                key, value = torch.cat([past[number][0], key], 2), torch.cat([past[number][1], value], 2)
            kept.append((key, value))
            states = layer.attention.output(attend(attention, states, key, value, causal), states)
            cross = layer.crossattention.self
            states = layer.crossattention.output(attend(cross, states, *memory[number], question), states)
            states = layer.feed_forward_chunk(states)
        if past is not None:
            past[:] = kept
        return self.text_decoder.cls(states)


class Model(base.Model):
    """BLIP's network and processor, and its three ways of decoding."""

    kind = "blip"
    lora_targets = ("query", "value")
    processor: Processor
    published: ClassVar[dict[str, str]] = {
        "total": "385 M",
        "trainable": "1.2 M at r = 16",
        "difference": "query and value match 96 layers of the text encoder and decoder: 2.36 M trainable parameters with "
        "r = 16, 1.18 M with r = 8. The total of 385 M counts the decoder's output layer in addition to the embedding, "
        "although they share their weights.",
    }

    def __init__(self, net: nn.Module, processor: Processor, stop_id: int) -> None:
        self.net, self.processor, self.stop_id = net, processor, stop_id
        self.candidates: Batch | None = None
        self.candidate_texts: list[str] = []

    @classmethod
    def load(cls, settings: ModelSettings, answers: Iterable[str] = ()) -> Model:
        """See `vqa.models.base.Model`; BLIP generates its answers, so ``answers`` is not used."""
        net, tokenizer, image_processor = load_parts(settings.weights, ImageOnceBlip, BlipImageProcessorPil)
        text = net.config.text_config
        # bos is [DEC]. [ENC] is the id after it: the original vocabulary has both, transformers' tokenizer neither.
        enc_id = text.bos_token_id + 1 if settings.question_prefix == "enc" else None
        processor = Processor(
            tokenizer, image_processor, net.config.vision_config.image_size, text.bos_token_id, enc_id
        )
        model = cls(net, processor, text.sep_token_id)
        model.load_extra(Path(settings.weights))
        return model

    @classmethod
    def make_tiny(cls, folder: Path, vocabulary: Sequence[str]) -> None:
        """See `vqa.models.base.Model`."""
        bert_tokenizer(folder, vocabulary)
        dec = len(vocabulary)  # [DEC] and [ENC] are ids of the model alone, as in the real one
        text = {
            "vocab_size": dec + 2,
            "hidden_size": HIDDEN,
            "encoder_hidden_size": HIDDEN,
            "intermediate_size": 2 * HIDDEN,
            "projection_dim": HIDDEN,
            "num_hidden_layers": 1,
            "num_attention_heads": HEADS,
            "max_position_embeddings": 64,
            "bos_token_id": dec,
            "pad_token_id": 0,
            "eos_token_id": 3,
            "sep_token_id": 3,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "initializer_range": INIT_STD,
        }
        vision = {
            "hidden_size": HIDDEN,
            "intermediate_size": 2 * HIDDEN,
            "num_hidden_layers": 3,
            "num_attention_heads": HEADS,
            "image_size": IMAGE_SIZE,
            "patch_size": 8,
            "attention_dropout": 0.0,
            "initializer_range": INIT_STD,  # the default of 1e-10 is for loading weights, not for training from scratch
        }
        config = BlipConfig(
            text_config=text, vision_config=vision, projection_dim=HIDDEN, image_text_hidden_size=HIDDEN
        )
        BlipForQuestionAnswering(config).save_pretrained(folder)
        BlipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}).save_pretrained(folder)

    def save_extra(self, folder: Path) -> None:
        """Write the questions' first token."""
        self.processor.save_prefix(folder)

    def load_extra(self, folder: Path) -> None:
        """Use the first token of questions that the adapter or the weights in ``folder`` were trained with."""
        if (folder / PREFIX).is_file():
            self.processor.enc_id = self.blip.config.text_config.bos_token_id + 1

    @property
    def blip(self) -> ImageOnceBlip:
        """The network without peft's wrapper."""
        inner = self.net.get_base_model() if hasattr(self.net, "get_base_model") else self.net
        assert isinstance(inner, ImageOnceBlip)
        return inner

    def encode(self, batch: Batch) -> Any:
        """The images' states, unless an adapter changes the vision tower."""
        if any("lora_" in name for name, _ in self.blip.vision_model.named_parameters()):
            return None
        return self.blip.encode_images(batch["pixels"])

    def store_features(self, settings: FeatureSettings) -> str:
        """See `vqa.models.base.Model`; not for a tower that an adapter reaches or that is trained."""
        blip = self.blip
        training = hasattr(self.net, "peft_config") and any(p.requires_grad for p in blip.vision_model.parameters())
        if training or not is_base(blip.vision_model):
            return (
                "the adapter reaches the vision tower, so its features are not stored: each image is encoded again in every epoch, "
                "with gradients, and in evaluation once for each adapter."
            )
        if settings.folder is not None and settings.max_gb > 0:
            tower = blip.vision_model.state_dict()
            parts = [tower[name] for name in sorted(tower)]
            blip.stored = TowerFeatures(settings, [*parts, blip.image_mean, blip.image_std])
        return ""

    def compile(self) -> None:
        """Compile the image encoder."""
        self.blip.vision_model.compile()

    def answer(self, batch: Batch, encoded: Any, settings: EvaluateSettings, *, adapted: bool) -> list[Answer]:
        """See `vqa.models.base.Model`."""
        image_states = self.blip.encode_images(batch["pixels"]) if encoded is None else encoded
        mask = batch["attention_mask"]
        states = self.blip.encode_questions(image_states, batch["input_ids"], mask, batch["image_of_question"])
        if settings.decoding == "ranking":
            return self._rank(states, mask, settings.shortlist)
        if settings.decoding == "beam":
            return self._beam(states, mask, settings)
        return self._greedy(states, mask, settings.max_new_tokens)

    def _greedy(self, states: Tensor, mask: Tensor, most: int) -> list[Answer]:
        """The most likely token at each step; confidence is the product of the tokens' probabilities, [SEP] included."""
        blip, count = self.blip, len(states)
        memory, past = blip.question_memory(states), list[tuple[Tensor, Tensor]]()
        token = torch.full((count, 1), self.processor_dec(), device=states.device)
        written, certainty = [], torch.zeros(count, device=states.device)
        finished = torch.zeros(count, dtype=torch.bool, device=states.device)
        for _ in range(most):
            chances = blip.decoder_step(memory, mask, token, past)[:, -1].float().log_softmax(-1)
            best = chances.max(-1)
            certainty = torch.where(finished, certainty, certainty + best.values)
            chosen = best.indices.masked_fill(finished, self.stop_id)
            written.append(chosen)
            finished |= chosen == self.stop_id
            if bool(finished.all()):
                break
            token = chosen[:, None]
        return self._texts(torch.stack(written, 1), certainty.exp())

    def _beam(self, states: Tensor, mask: Tensor, settings: EvaluateSettings) -> list[Answer]:
        """Beam search; confidence is the product of the tokens' probabilities.

        transformers' ``generate`` is not used because its decoder attends to the padding of a batch's questions. There is no
        length penalty, since answers are one word. So scores can only fall, and the search is over when the best beam ends.
        """
        blip, count, beams = self.blip, len(states), settings.beams
        mask = mask.repeat_interleave(beams, 0)
        memory = [
            (k.repeat_interleave(beams, 0), v.repeat_interleave(beams, 0)) for k, v in blip.question_memory(states)
        ]
        past = list[tuple[Tensor, Tensor]]()
        written = torch.full((count * beams, 1), self.processor_dec(), device=states.device)
        scores = torch.full((count, beams), -torch.inf, device=states.device)
        scores[:, 0] = 0  # all beams start equal, so only the first counts; else they would stay copies of each other
        for _ in range(settings.max_new_tokens):
            chances = blip.decoder_step(memory, mask, written[:, -1:], past)[:, -1].float().log_softmax(-1)
            ended = (written == self.stop_id).any(1)
            chances = chances.masked_fill(ended[:, None], -torch.inf)
            chances[ended, self.stop_id] = 0  # an ended beam goes on with [SEP] at no cost
            words = chances.shape[1]
            best = (scores[:, :, None] + chances.view(count, beams, words)).flatten(1).topk(beams)
            scores = best.values
            parents = (best.indices // words + torch.arange(count, device=states.device)[:, None] * beams).flatten()
            past[:] = [(key[parents], value[parents]) for key, value in past]
            written = torch.cat([written[parents], (best.indices % words).view(-1, 1)], 1)
            if bool((written.view(count, beams, -1)[:, 0] == self.stop_id).any(1).all()):
                break
        return self._texts(written.view(count, beams, -1)[:, 0, 1:], scores[:, 0].exp())

    def set_candidates(self, answers: Sequence[str]) -> None:
        """See `vqa.models.base.Model`."""
        self.candidate_texts = list(answers)
        self.candidates = self.processor.targets(self.candidate_texts)

    def _rank(self, states: Tensor, mask: Tensor, shortlist: int) -> list[Answer]:
        """The most likely known answer, as ``rank_answer`` in BLIP's code: a shortlist by first token, then likelihood.

        Confidence is the answer's share of the shortlist's probability.
        """
        assert self.candidates is not None, "set_candidates comes first"
        ids, labels = (self.candidates[name].to(states.device) for name in ("decoder_input_ids", "labels"))
        keep = min(shortlist, len(ids))
        memory = self.blip.question_memory(states)
        start = torch.full((len(states), 1), self.processor_dec(), device=states.device)
        first = self.blip.decoder_step(memory, mask, start, None)[:, -1].float().log_softmax(-1)
        chosen = first.index_select(1, labels[:, 1]).topk(keep).indices  # (Q, keep)
        answers = []
        for number, rows in enumerate(chosen):  # one question at a time, so that memory holds ``keep`` answers
            one = [
                (k[number : number + 1].expand(keep, -1, -1, -1), v[number : number + 1].expand(keep, -1, -1, -1))
                for k, v in memory
            ]
            logits = self.blip.decoder_step(one, mask[number : number + 1].expand(keep, -1), ids[rows], None)
            target = labels[rows][:, 1:]
            # Log-probability of each token of each answer, (keep, tokens); gather takes no -100, so it is masked after.
            said = logits[:, :-1].float().log_softmax(-1).gather(2, target.clamp_min(0)[..., None])[..., 0]
            likelihood = said.masked_fill(target == IGNORED, 0).sum(1)
            best = int(likelihood.argmax())
            answers.append(Answer(self.candidate_texts[int(rows[best])], float(likelihood.softmax(0)[best])))
        return answers

    def processor_dec(self) -> int:
        """The id of [DEC], which every answer starts with."""
        return self.processor.dec_id

    def _texts(self, ids: Tensor, certainty: Tensor) -> list[Answer]:
        rows = ids.tolist()
        cut = [row[: row.index(self.stop_id)] if self.stop_id in row else row for row in rows]
        texts = self.processor.tokenizer.batch_decode(cut, skip_special_tokens=True)
        return [Answer(text.strip(), float(c)) for text, c in zip(texts, certainty, strict=True)]
