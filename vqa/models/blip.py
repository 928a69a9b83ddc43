"""BLIP (Li et al. 2022) for visual question answering: an image encoder, a question encoder that looks at the image, and
a decoder that writes the answer looking at the question.

Where this differs from calling transformers' `BlipForQuestionAnswering` directly, and why:

- the vision tower runs once an image, without gradients where it is frozen; keys and values of the image's tokens are
  computed once an image too (`vqa.models.attention`);
- the decoder starts at [DEC] in training as it does in inference (transformers feeds the labels, which start at [CLS]);
- padding is masked everywhere, also where the decoder looks at the question (transformers' ``generate`` does not), so that an
  answer does not depend on what else is in the batch; padded labels do not count in the loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import BlipForQuestionAnswering, BlipImageProcessorPil
from transformers.models.blip.modeling_blip import BlipAttention

from data_prep.files import write_json
from vqa import distributed
from vqa.models import base
from vqa.models.attention import Fold, attend, keys_values
from vqa.models.base import Answer, Batch, load_parts
from vqa.settings import EvaluateSettings, ModelSettings

MAX_QUESTION_TOKENS = 40
MAX_ANSWER_TOKENS = 12
IGNORED = -100
PREFIX = (
    "question_prefix.json"  # beside adapters and merged weights that were trained with questions that start with [ENC]
)


class Processor(base.Processor):
    """Pinned to transformers' PIL image processor: the torchvision one gives slightly different pixels."""

    def __init__(self, tokenizer: Any, images: Any, size: int, dec_id: int, enc_id: int | None) -> None:
        self.tokenizer, self.images, self.size, self.dec_id, self.enc_id = tokenizer, images, size, dec_id, enc_id

    def save(self, folder: Path) -> None:
        """Tokenizer, image processor, and how questions begin."""
        super().save(folder)
        self.save_prefix(folder)

    def save_prefix(self, folder: Path) -> None:
        """Write how questions begin, where that is not what anybody would expect of transformers' BLIP."""
        if self.enc_id is not None:
            write_json(folder / PREFIX, {"question_prefix": "enc"})

    def collate(
        self,
        pictures: Sequence[Image.Image],
        questions: Sequence[Sequence[str]],
        answers: Sequence[Sequence[str]] | None = None,
    ) -> Batch:
        """See `vqa.models.base.Processor`; ``pixels`` has shape (images, 3, size, size)."""
        flat = [question for group in questions for question in group]
        text = self.tokenizer(flat, padding=True, truncation=True, max_length=MAX_QUESTION_TOKENS, return_tensors="pt")
        if self.enc_id is not None:
            text["input_ids"][:, 0] = self.enc_id
        batch = {
            "pixels": torch.stack([self._pixels(image) for image in pictures]),
            "input_ids": text["input_ids"],
            "attention_mask": text["attention_mask"],
            "image_of_question": torch.repeat_interleave(torch.tensor([len(group) for group in questions])),
        }
        if answers is not None:
            batch |= self.targets([answer for group in answers for answer in group])
        return batch

    def targets(self, answers: Sequence[str]) -> Batch:
        """Decoder input, starting at [DEC], and labels, in which pads do not count. Not shifted: the loss does that."""
        text = self.tokenizer(
            list(answers), padding=True, truncation=True, max_length=MAX_ANSWER_TOKENS, return_tensors="pt"
        )
        ids = text["input_ids"].clone()
        ids[:, 0] = self.dec_id
        return {"decoder_input_ids": ids, "labels": text["input_ids"].masked_fill(text["attention_mask"] == 0, IGNORED)}

    def _pixels(self, image: Image.Image) -> Tensor:
        side = image.resize((self.size, self.size), self.images.resample)
        return (
            torch.frombuffer(bytearray(side.tobytes()), dtype=torch.uint8)
            .view(self.size, self.size, 3)
            .permute(2, 0, 1)
        )


class FusedVisionAttention(BlipAttention):
    """The image encoder's attention without its (P, heads, 577, 577) table of weights in memory: a sixth of the time."""

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        """(P, T, D) in and out; no attention weights beside it."""
        pictures, length, size = hidden_states.shape
        query, key, value = (
            self.qkv(hidden_states).view(pictures, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        )
        dropout = self.dropout.p if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=self.scale)
        return self.projection(mixed.transpose(1, 2).reshape(pictures, length, size)), None


class ImageOnceBlip(BlipForQuestionAnswering):
    """transformers' BLIP with the same weights and names, and a forward pass that takes images with their questions."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.vision_model.encoder.layers:
            layer.self_attn = FusedVisionAttention(config.vision_config)  # the same weights under the same names
        self._last_image: tuple[Tensor, Tensor] | None = None  # its pixels (3, S, S) and states (1, T, D)
        self.register_buffer("image_mean", torch.zeros(3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.ones(3, 1, 1), persistent=False)

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
        """The loss of a batch, a mean over the answers' tokens, and the decoder's logits (Q, T, vocabulary)."""
        pictures = self.encode_images(pixels)
        states = self.encode_questions(pictures, input_ids, attention_mask, image_of_question)
        logits = self.decode(states, attention_mask, decoder_input_ids)
        loss = functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(),
            labels[:, 1:].flatten(),
            ignore_index=IGNORED,
            label_smoothing=self.text_decoder.label_smoothing,
        )
        return {"loss": loss, "logits": logits}

    def encode_images(self, pixels: Tensor) -> Tensor:
        """uint8 pixels (P, 3, S, S) to states (P, T, D); gradients only where something in the tower is trained.

        In training batches are cut by questions, so the last image of one is often the first of the next: where the tower is
        frozen its states are kept for that.
        """
        trained = any(parameter.requires_grad for parameter in self.vision_model.parameters())
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            # Of several processes none encodes fewer images: under ZeRO-3 they all take part in each layer.
            if trained or not self.training or distributed.count() > 1 or self.config.vision_config.attention_dropout:
                return self._vision(pixels)
            last, self._last_image = self._last_image, None
            known = [last[1]] if last is not None and torch.equal(last[0], pixels[0]) else []
            new = pixels[len(known) :]
            if new.device.type == "cpu":
                # Which images are encoded together decides the last bits. The first and the last are by themselves, so that
                # they come out the same whether or not they were kept, as after a resumption.
                first, last_one = (0 if known else 1), (1 if len(pixels) > 1 else 0)
                middle = len(new) - first - last_one
                groups = [group for group in new.split([first, middle, last_one]) if len(group)]
            else:
                groups = [new] if len(new) else []
            states = torch.cat([*known, *map(self._vision, groups)])
            self._last_image = pixels[-1].clone(), states[-1:].clone()
            return states

    def _vision(self, pixels: Tensor) -> Tensor:
        normal = (pixels.float() / 255 - self.image_mean) / self.image_std
        states: Tensor = self.vision_model(pixel_values=normal.to(self._vision_dtype())).last_hidden_state
        return states

    def _vision_dtype(self) -> torch.dtype:
        return self.vision_model.embeddings.class_embedding.dtype

    def encode_questions(
        self, pictures: Tensor, input_ids: Tensor, attention_mask: Tensor, image_of_question: Tensor
    ) -> Tensor:
        """Questions that have looked at their images: (Q, L, D)."""
        fold = Fold.of(image_of_question, len(pictures))
        length = input_ids.shape[1]
        own = attention_mask.bool()[:, None, None, :]
        states = self.text_encoder.embeddings(input_ids=input_ids)
        for layer in self.text_encoder.encoder.layer:
            attention = layer.attention.self
            mixed = attend(attention, states, *keys_values(attention, states), own)
            states = layer.attention.output(mixed, states)
            cross = layer.crossattention.self
            seen = attend(cross, fold.fold(states), *keys_values(cross, pictures), None)
            states = layer.crossattention.output(fold.unfold(seen, length), states)
            states = layer.feed_forward_chunk(states)
        return states

    def question_memory(self, states: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the encoded questions for every decoder layer; they serve all steps of an answer."""
        return [keys_values(layer.crossattention.self, states) for layer in self.text_decoder.bert.encoder.layer]

    def decode(self, states: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor) -> Tensor:
        """Logits (Q, T, vocabulary) of whole answers at once."""
        return self.decoder_step(self.question_memory(states), attention_mask, decoder_input_ids, None)

    def decoder_step(
        self,
        memory: list[tuple[Tensor, Tensor]],
        attention_mask: Tensor,
        ids: Tensor,
        past: list[tuple[Tensor, Tensor]] | None,
    ) -> Tensor:
        """Logits of ``ids`` (Q, T) after what ``past`` holds; ``past`` is filled in place, a pair a layer."""
        bert = self.text_decoder.bert
        length, begun = ids.shape[1], past[0][0].shape[2] if past else 0
        question = attention_mask.bool()[:, None, None, :]
        causal = None
        if length > 1:
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
        logits: Tensor = self.text_decoder.cls(states)
        return logits


class Model(base.Model):
    """BLIP with everything around it."""

    kind = "blip"
    lora_targets = ("query", "value")
    published: ClassVar[dict[str, str]] = {
        "total": "385 M",
        "trainable": "1.2 M at r = 16",
        "difference": "query and value match 96 layers of the text encoder and decoder; r = 16 gives 2.36 M trainable "
        "parameters there, and 1.18 M is what r = 8 gives. The total of 385 M counts the decoder's output layer apart "
        "from the embedding that it shares its weights with.",
    }

    def __init__(self, net: nn.Module, processor: Processor, stop_id: int) -> None:
        self.net, self.processor, self.stop_id = net, processor, stop_id
        self.candidates: Batch | None = None
        self.candidate_texts: list[str] = []

    @classmethod
    def load(cls, settings: ModelSettings, answers: Iterable[str] = ()) -> Model:
        """See `vqa.models.base.Model`; the answers do not matter, BLIP writes its own."""
        net, tokenizer, images = load_parts(settings.weights, ImageOnceBlip, BlipImageProcessorPil)
        net.image_mean.copy_(torch.tensor(images.image_mean).view(3, 1, 1))
        net.image_std.copy_(torch.tensor(images.image_std).view(3, 1, 1))
        text = net.config.text_config
        enc_id = text.bos_token_id + 1 if settings.question_prefix == "enc" else None  # [ENC] follows [DEC]
        processor = Processor(tokenizer, images, net.config.vision_config.image_size, text.bos_token_id, enc_id)
        model = cls(net.eval(), processor, text.sep_token_id)
        model.load_extra(Path(settings.weights))
        return model

    def save_extra(self, folder: Path) -> None:
        """Write how questions begin."""
        assert isinstance(self.processor, Processor)
        self.processor.save_prefix(folder)

    def load_extra(self, folder: Path) -> None:
        """Let questions begin as they did when the adapter or the weights in ``folder`` were trained."""
        assert isinstance(self.processor, Processor)
        if (folder / PREFIX).is_file():
            self.processor.enc_id = self.blip.config.text_config.bos_token_id + 1

    @property
    def blip(self) -> ImageOnceBlip:
        """The network itself, whether or not peft is around it."""
        inner = self.net.get_base_model() if hasattr(self.net, "get_base_model") else self.net
        assert isinstance(inner, ImageOnceBlip)
        return inner

    def encode(self, batch: Batch) -> Any:
        """The images' states, unless an adapter reaches the vision tower."""
        if any("lora_" in name for name, _ in self.blip.vision_model.named_parameters()):
            return None
        return self.blip.encode_images(batch["pixels"])

    def compile(self) -> None:
        """The image encoder."""
        self.blip.vision_model.compile()

    def answer(self, batch: Batch, encoded: Any, settings: EvaluateSettings, *, adapted: bool) -> list[Answer]:
        """See `vqa.models.base.Model`."""
        pictures = self.blip.encode_images(batch["pixels"]) if encoded is None else encoded
        mask = batch["attention_mask"]
        states = self.blip.encode_questions(pictures, batch["input_ids"], mask, batch["image_of_question"])
        if settings.decoding == "ranking":
            return self._rank(states, mask, settings.shortlist)
        if settings.decoding == "beam":
            return self._beam(states, mask, settings)
        return self._greedy(states, mask, settings.max_new_tokens)

    def _greedy(self, states: Tensor, mask: Tensor, most: int) -> list[Answer]:
        """The likeliest token at each step; confidence is the product of their probabilities, the end included."""
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
        """The likeliest answer that beam search finds; confidence is the product of its tokens' probabilities.

        Own code, since transformers' ``generate`` lets the decoder look at the padding of the questions in a batch. Likelihood is
        not divided by length: answers are one word. So the search ends when the best beam has ended, no other can overtake it.
        """
        blip, count, beams = self.blip, len(states), settings.beams
        mask = mask.repeat_interleave(beams, 0)
        memory = [
            (k.repeat_interleave(beams, 0), v.repeat_interleave(beams, 0)) for k, v in blip.question_memory(states)
        ]
        past = list[tuple[Tensor, Tensor]]()
        written = torch.full((count * beams, 1), self.processor_dec(), device=states.device)
        scores = torch.full((count, beams), -torch.inf, device=states.device)
        scores[:, 0] = 0  # all beams begin alike: only one of them counts
        for _ in range(settings.max_new_tokens):
            chances = blip.decoder_step(memory, mask, written[:, -1:], past)[:, -1].float().log_softmax(-1)
            ended = (written == self.stop_id).any(1)
            chances = chances.masked_fill(ended[:, None], -torch.inf)
            chances[ended, self.stop_id] = 0
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
        """Answers to choose from under ``decoding: ranking``."""
        assert isinstance(self.processor, Processor)
        self.candidate_texts = list(answers)
        self.candidates = self.processor.targets(self.candidate_texts)

    def _rank(self, states: Tensor, mask: Tensor, shortlist: int) -> list[Answer]:
        """The likeliest known answer, as `rank_answer` in BLIP's own code: a shortlist by first token, then likelihood.

        Confidence is the answer's part of the shortlist's probability.
        """
        assert self.candidates is not None, "set_candidates comes first"
        ids, labels = (self.candidates[name].to(states.device) for name in ("decoder_input_ids", "labels"))
        keep = min(shortlist, len(ids))
        memory = self.blip.question_memory(states)
        start = torch.full((len(states), 1), self.processor_dec(), device=states.device)
        first = self.blip.decoder_step(memory, mask, start, None)[:, -1].float().log_softmax(-1)
        chosen = first.index_select(1, labels[:, 1]).topk(keep).indices  # (Q, keep)
        answers = []
        for number, rows in enumerate(chosen):  # one question at a time bounds memory at ``keep`` rows
            one = [
                (k[number : number + 1].expand(keep, -1, -1, -1), v[number : number + 1].expand(keep, -1, -1, -1))
                for k, v in memory
            ]
            logits = self.blip.decoder_step(one, mask[number : number + 1].expand(keep, -1), ids[rows], None)
            target = labels[rows][:, 1:]
            said = logits[:, :-1].float().log_softmax(-1).gather(2, target.clamp_min(0)[..., None])[..., 0]
            likelihood = said.masked_fill(target == IGNORED, 0).sum(1)
            best = int(likelihood.argmax())
            answers.append(Answer(self.candidate_texts[int(rows[best])], float(likelihood.softmax(0)[best])))
        return answers

    def processor_dec(self) -> int:
        """The id that every answer starts with."""
        assert isinstance(self.processor, Processor)
        return self.processor.dec_id

    def _texts(self, ids: Tensor, certainty: Tensor) -> list[Answer]:
        assert isinstance(self.processor, Processor)
        rows = ids.tolist()
        cut = [row[: row.index(self.stop_id)] if self.stop_id in row else row for row in rows]
        texts = self.processor.tokenizer.batch_decode(cut, skip_special_tokens=True)
        return [Answer(text.strip(), float(c)) for text, c in zip(texts, certainty, strict=True)]
