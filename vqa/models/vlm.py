"""Any image-text-to-text model of transformers (SmolVLM, LLaVA, Qwen-VL, Gemma 3 and so on), by its hub name or folder.

The prompt goes through the model's own chat template: the image, the question and an instruction. LoRA is on the decoder only,
so that the vision tower says the same for all adapters. What an image's questions share is computed once as far as that is
exact (`vqa.models.shared_prefix`), which a probe finds out at load.

Shapes: Q questions, L tokens of a question and its answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from packaging.version import Version
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForImageTextToText

from data_prep.outcomes import UserError
from vqa.models import base
from vqa.models.base import Answer, Batch, load_network, missing_weights
from vqa.models.shared_prefix import IGNORED, IMAGE, Level, Past, SharedPrefix, appended, image_groups, owned, probe
from vqa.models.tiny import HEADS, HIDDEN, IMAGE_SIZE, INIT_STD
from vqa.models.whole_processor import load_processor
from vqa.settings import EvaluateSettings, ModelSettings

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SHARED_SAID = {
    "prefix": "the questions of an image share its vision features and its key-value cache",
    "vision": "the questions of an image share its vision features; each reads them in a row of its own",
    "none": "the questions of an image share nothing: each has a row of its own",
}


class Processor(base.Processor):
    """Wraps the model's own processor with the PIL image processor, so that pixels don't depend on torchvision."""

    def __init__(self, whole: Any, instruction: str, stop_ids: Sequence[int]) -> None:
        self.whole, self.instruction, self.stop_ids = whole, instruction, list(stop_ids)
        self.tokenizer, self.image_processor = whole.tokenizer, whole.image_processor

    def save(self, folder: Path) -> None:
        """Write the model's whole processor."""
        self.whole.save_pretrained(folder)

    def prompt(self, question: str, answer: str | None = None) -> str:
        """The text of a question by the chat template, with its answer's turn if there is one."""
        asked = f"{question} {self.instruction}".strip()
        if not self.whole.chat_template:
            return f"{getattr(self.whole, 'image_token', '')}{asked}\n"
        turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked}]}]
        if answer is not None:
            turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        text: str = self.tokenizer.apply_chat_template(
            turns, chat_template=self.whole.chat_template, add_generation_prompt=answer is None, tokenize=False
        )
        return text

    def answer_ids(self, answer: str) -> list[int]:
        """The tokens of an answer as the template writes it after its prompt, and the end token."""
        lead = ""
        if self.whole.chat_template:
            start, whole = self.prompt("?"), self.prompt("?", answer)
            place = whole.find(answer, len(start)) if whole.startswith(start) else -1
            lead = whole[len(start) : place] if place >= 0 else ""
        ids: list[int] = self.tokenizer(lead + answer, add_special_tokens=False)["input_ids"]
        return [*ids, self.stop_ids[0]]

    def rows(self, image: Image.Image, questions: Sequence[str]) -> tuple[dict[str, Tensor], list[list[int]]]:
        """An image's tensors with the tokens that all of its questions share, and each question's own tokens.

        The image goes through the processor once, unless the tokens after it depend on the question in more than their number.
        """
        first = self._processed(image, questions[0])
        tails = [self._tail(question) for question in questions]
        whole: list[int] = first["input_ids"][0].tolist()
        if tails[0] is not None and all(tails) and whole[-len(tails[0]) :] == tails[0]:
            begun = len(whole) - len(tails[0])
            own = [tail or [] for tail in tails]
        else:
            every = [whole] + [self._processed(image, question)["input_ids"][0].tolist() for question in questions[1:]]
            token = getattr(self.whole, "image_token_id", None)
            begun = max((place + 1 for place, each in enumerate(whole) if each == token), default=0)
            own = [each[begun:] for each in every]
        inputs = {}
        for name, tensor in first.items():
            if name != "attention_mask" and isinstance(tensor, Tensor):
                inputs[name] = tensor[:, :begun] if tensor.shape[:2] == first["input_ids"].shape else tensor
        return inputs, own

    def _processed(self, image: Image.Image, question: str) -> dict[str, Tensor]:
        prompt, bos = self.prompt(question), self.tokenizer.bos_token
        once = {"add_special_tokens": False} if bos and prompt.startswith(bos) else {}  # the template has written it
        made = dict(self.whole(text=[prompt], images=[[image]], return_tensors="pt", **once))
        made.pop("labels", None)
        return made

    def _tail(self, question: str) -> list[int] | None:
        """The tokens after the image's placeholder, by the tokenizer alone; None where there is no placeholder."""
        ids: list[int] = self.tokenizer(self.prompt(question), add_special_tokens=False)["input_ids"]
        token = getattr(self.whole, "image_token_id", None)
        if token not in ids:
            return None
        return ids[len(ids) - ids[::-1].index(token) :]

    def collate(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[Sequence[str]],
        answers: Sequence[Sequence[str]] | None = None,
    ) -> Batch:
        """See `vqa.models.base.Processor`; an image's tensors are under image/NUMBER/NAME, since their shapes differ."""
        batch: Batch = {}
        ids, labels = [], []
        for number, (image, asked) in enumerate(zip(images, questions, strict=True)):
            inputs, own = self.rows(image, asked)
            batch |= {f"{IMAGE}{number}/{name}": tensor for name, tensor in inputs.items()}
            for place, question in enumerate(own):
                said = self.answer_ids(answers[number][place]) if answers is not None else []
                ids.append(torch.tensor(question + said))
                labels.append(torch.tensor([IGNORED] * len(question) + said))
        counts = torch.tensor([len(row) for row in ids])
        batch["input_ids"] = pad_sequence(ids, batch_first=True, padding_value=int(ids[0][0]))  # masked
        batch["mask"] = torch.arange(int(counts.max())) < counts[:, None]
        batch["image_of_question"] = torch.repeat_interleave(torch.tensor([len(group) for group in questions]))
        if answers is not None:
            batch["labels"] = pad_sequence(labels, batch_first=True, padding_value=IGNORED)
        return batch

    def decode_labels(self, labels: Tensor) -> list[str]:
        """See `vqa.models.base.Processor`."""
        return [self.text([token for token in row if token != IGNORED]) for row in labels.tolist()]

    def text(self, ids: Sequence[int]) -> str:
        """The words of an answer's tokens, up to the end token."""
        end = next((place for place, token in enumerate(ids) if token in self.stop_ids), len(ids))
        words: str = self.tokenizer.decode(ids[:end], skip_special_tokens=True)
        return words.strip()


class Model(base.Model):
    """A network of transformers with its processor, greedy answers and ranking."""

    kind = "vlm"
    oldest_transformers = "5.23"  # in 5.5 a vision tower's features have another shape; between them none was tried
    lora_targets = ("q_proj", "v_proj")
    processor: Processor
    published: ClassVar[dict[str, str]] = {
        "total": "-",
        "trainable": "-",
        "difference": "The report has no model of this kind.",
    }

    def __init__(self, net: Any, processor: Processor) -> None:
        self.net, self.processor = net, processor
        self.candidates: list[str] = []
        self.shared: dict[str, float] = {}  # by level of sharing that the probe tried: the largest difference

    @classmethod
    def load(cls, settings: ModelSettings, answers: Iterable[str] = ()) -> Model:
        """See `vqa.models.base.Model`; answers are generated, so ``answers`` is not used."""
        if Version(transformers.__version__) < Version(cls.oldest_transformers):
            raise UserError(
                f"kind: vlm needs transformers {cls.oldest_transformers} or newer, and {transformers.__version__} is installed."
            )
        try:
            config = AutoConfig.from_pretrained(settings.weights)
            whole = load_processor(settings.weights, config.model_type)
            kind = AutoModelForImageTextToText._model_mapping[type(config)]
        except ImportError as error:
            words = " ".join(str(error).split())[:200]
            raise UserError(
                f"The processor of {settings.weights} needs a library that is not installed: {words}"
            ) from error
        except KeyError as error:
            raise UserError(f"{settings.weights} is no image-text-to-text model of transformers.") from error
        except (OSError, ValueError) as error:
            raise missing_weights(settings.weights, error) from error
        # Under transformers' own name, so that configurations and adapters name a class that loads without this project.
        network = type(kind.__name__, (SharedPrefix, kind), {"__module__": kind.__module__})
        net = load_network(settings.weights, network, dtype=DTYPES[settings.dtype], **_quantization(settings))
        stop = net.generation_config.eos_token_id
        stop_ids = stop if isinstance(stop, list) else [stop if stop is not None else whole.tokenizer.eos_token_id]
        model = cls(net, Processor(whole, settings.instruction, stop_ids))
        model.prove()
        return model

    def prove(self) -> None:
        """Find out by `probe` what may be shared, and say so where it is not everything."""
        if self.network.dtype != torch.float32:
            self.network.level = "none"  # half precision and quantized weights cannot prove it to 1e-5
            return
        noise = [Image.effect_noise((96, 80), 90).convert("RGB"), Image.effect_noise((80, 96), 90).convert("RGB")]
        asked = [["What is it?", "What color is the thing on the left of it?"], ["Is it round?"]]
        batch = self.processor.collate(noise, asked, [["red", "two"], ["yes"]])
        level, self.shared = probe(self.network, {name: tensor.to(self.device) for name, tensor in batch.items()})
        if level != "prefix":
            print(f"{type(self.network).__name__}: {SHARED_SAID[level]}", flush=True)

    @property
    def network(self) -> Any:
        """The network without peft's wrapper."""
        return self.net.get_base_model() if hasattr(self.net, "get_base_model") else self.net

    @property
    def level(self) -> Level:
        """What the questions of an image share."""
        level: Level = self.network.level
        return level

    def lora_layers(self, targets: Sequence[str]) -> list[str]:
        """The decoder's layers of these names: the same names in the vision tower would end its sharing."""
        decoder = self.network.get_decoder()
        start = next(name for name, module in self.network.named_modules() if module is decoder)
        names = [f"{start}.{name}" for name, _ in decoder.named_modules() if name.rpartition(".")[2] in targets]
        return names or list(targets)

    def halve(self, batch: Batch) -> tuple[Batch, Batch]:
        """See `vqa.models.base.Model`."""
        count = base.image_count(batch)
        owner = batch["image_of_question"]
        parts = []
        for first, last in ((0, count // 2), (count // 2, count)):
            part: Batch = {}
            for name, tensor in batch.items():
                if not name.startswith(IMAGE):
                    part[name] = tensor[(owner >= first) & (owner < last)]
                elif first <= (number := int(name.split("/")[1])) < last:
                    part[f"{IMAGE}{number - first}/{name.split('/')[2]}"] = tensor
            part["image_of_question"] = part["image_of_question"] - first
            parts.append(part)
        return parts[0], parts[1]

    def encode(self, batch: Batch) -> Any:
        """The images' features, by group."""
        return [self.network.encode_images(group) for group in image_groups(batch)]

    def compile(self) -> None:
        """Compile the decoder."""
        self.network.get_decoder().compile()

    def set_candidates(self, answers: Sequence[str]) -> None:
        """See `vqa.models.base.Model`."""
        self.candidates = list(answers)

    def answer(self, batch: Batch, encoded: Any, settings: EvaluateSettings, *, adapted: bool) -> list[Answer]:
        """See `vqa.models.base.Model`."""
        if settings.decoding == "beam":
            raise UserError("evaluate.decoding: vlm does not support beam; use greedy or ranking.")
        groups = image_groups(batch)
        seen = encoded if encoded is not None else self.encode(batch)
        answers: dict[int, Answer] = {}
        for group, features in zip(groups, seen, strict=True):
            rows, owner = owned(group, batch["image_of_question"])
            ids, mask = batch["input_ids"][rows], batch["mask"][rows]
            said = (
                self._rank(group, features, owner, ids, mask)
                if settings.decoding == "ranking"
                else self._greedy(group, features, owner, ids, mask, settings.max_new_tokens)
            )
            answers |= dict(zip(rows.tolist(), said, strict=True))
        return [answers[row] for row in range(len(answers))]

    def _greedy(self, group: Any, seen: Any, owner: Tensor, ids: Tensor, mask: Tensor, most: int) -> list[Answer]:
        """The most likely token at each step; confidence is the product of the tokens' probabilities, the end included."""
        net, count = self.network, len(ids)
        stops = torch.tensor(self.processor.stop_ids, device=ids.device)
        rows = torch.arange(count, device=ids.device)
        logits, past = net.read(group, seen, owner, ids, mask)
        last = logits[rows, mask.sum(1) - 1]
        written: list[Tensor] = []
        certainty = torch.zeros(count, device=ids.device)
        finished = torch.zeros(count, dtype=torch.bool, device=ids.device)
        while True:
            best = last.float().log_softmax(-1).max(-1)
            certainty = torch.where(finished, certainty, certainty + best.values)
            written.append(best.indices.masked_fill(finished, int(stops[0])))
            finished = finished | torch.isin(written[-1], stops)
            if len(written) == most or bool(finished.all()):
                break
            last = self._next(group, seen, owner, ids, mask, written, past)
        texts = [self.processor.text(row) for row in torch.stack(written, 1).tolist()]
        return [Answer(text, float(chance)) for text, chance in zip(texts, certainty.exp(), strict=True)]

    def _next(
        self, group: Any, seen: Any, owner: Tensor, ids: Tensor, mask: Tensor, written: list[Tensor], past: Past | None
    ) -> Tensor:
        """Logits (Q, vocabulary) after what has been written."""
        new = written[-1][:, None]
        if past is not None:
            return self.network.step(past, new, torch.ones_like(new, dtype=torch.bool))[:, -1]  # type: ignore[no-any-return]
        whole, counted = appended(ids, mask, torch.stack(written, 1))
        logits, _ = self.network.read(group, seen, owner, whole, counted, mask.sum(1))
        return logits[torch.arange(len(ids), device=ids.device), counted.sum(1) - 1]  # type: ignore[no-any-return]

    def _rank(self, group: Any, seen: Any, owner: Tensor, ids: Tensor, mask: Tensor) -> list[Answer]:
        """The most likely candidate; confidence is its share of the probability of all."""
        assert self.candidates, "set_candidates comes first"
        scores = []
        for candidate in self.candidates:  # one at a time, so that memory holds a row per question
            said = torch.tensor(self.processor.answer_ids(candidate), device=ids.device).expand(len(ids), -1)
            whole, counted = appended(ids, mask, said)
            logits, _ = self.network.read(group, seen, owner, whole, counted, mask.sum(1))
            places = mask.sum(1)[:, None] - 1 + torch.arange(said.shape[1], device=ids.device)
            rows = torch.arange(len(ids), device=ids.device)[:, None]
            chances = logits[rows, places].float().log_softmax(-1)
            scores.append(chances.gather(2, said[..., None])[..., 0].sum(1))
        best = torch.stack(scores, 1).softmax(1).max(1)
        return [
            Answer(self.candidates[place], float(share))
            for place, share in zip(best.indices.tolist(), best.values, strict=True)
        ]

    @classmethod
    def make_tiny(cls, folder: Path, vocabulary: Sequence[str]) -> None:
        """A LLaVA: see `vqa.models.base.Model`."""
        from transformers import CLIPImageProcessorPil, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

        tokenizer = _word_tokenizer(["<image>", "<end>", "user", "assistant", ":", *vocabulary])
        common = {"hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN, "num_attention_heads": HEADS}
        vision = common | {
            "model_type": "clip_vision_model",
            "num_hidden_layers": 3,
            "image_size": IMAGE_SIZE,
            "patch_size": 8,
        }
        text = common | {
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "num_hidden_layers": 2,
            "num_key_value_heads": HEADS,
            "max_position_embeddings": 256,
            "initializer_range": INIT_STD,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
        }
        config = LlavaConfig(
            vision_config=vision | {"initializer_range": INIT_STD},
            text_config=text,
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            vision_feature_layer=-1,
        )
        net = LlavaForConditionalGeneration(config)
        net.generation_config.eos_token_id = tokenizer.eos_token_id
        net.generation_config.pad_token_id = tokenizer.pad_token_id
        net.save_pretrained(folder)
        size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        pixels = CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False)
        LlavaProcessor(
            pixels,
            tokenizer,
            patch_size=8,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=TINY_TEMPLATE,
        ).save_pretrained(folder)


TINY_TEMPLATE = (
    "{% for turn in messages %}{{ turn['role'] }} : {% for part in turn['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}{% endfor %}<end>{% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)


def _word_tokenizer(words: Sequence[str]) -> Any:
    """Whole words in lower case; the first two are special."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = {word: number for number, word in enumerate(dict.fromkeys(words))}
    made = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        eos_token="<end>",
        additional_special_tokens=["<image>"],
    )


def _quantization(settings: ModelSettings) -> dict[str, Any]:
    """The options of ``from_pretrained`` for quantized weights.

    Raises:
        UserError: there is no GPU for them.
    """
    if settings.quantization is None:
        return {}
    if not torch.cuda.is_available():
        raise UserError("models: quantization works on a GPU only (bitsandbytes); leave it out here.")
    from transformers import BitsAndBytesConfig

    if settings.quantization == "8bit":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    return {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=DTYPES[settings.dtype])}
