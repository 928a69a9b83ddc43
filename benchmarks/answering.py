"""Answering at full size: images encoded once for all of their questions, against transformers' own code.

    python -m benchmarks.answering [--images 4] [--questions 5] [--rounds 3] [--sweep] [--out FILE] [--plots FOLDER]

The other side has the same weights: `BlipForQuestionAnswering.generate` in batches of as many questions and one question at a
time, and `ViltForQuestionAnswering` in the same batches. All sides get finished tensors, so none pays for decoding images.
Answers have at most 3 tokens (a word and its end), since random weights would not stop by themselves; equal answers are
counted. On a GPU both sides run under the same autocast.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from PIL import Image
from transformers import BlipForQuestionAnswering, ViltForQuestionAnswering

from benchmarks.full_size import make_full_size
from benchmarks.measure import alternate, compare, report
from benchmarks.plots import draw
from data_prep.outcomes import UserError
from vqa.inference.answerer import Answerer, autocast
from vqa.models.base import model_class
from vqa.models.lora import apply_lora_to_model
from vqa.settings import EvaluateSettings, LoraSettings, ModelSettings

TOKENS = 3
WORDS = ("color", "shape", "material", "pattern", "type", "style", "finish", "brand", "size", "use", "side", "edge")


def questions_about(image_count: int, each: int) -> list[list[str]]:
    """Questions of ABO's length, 8 to 12 tokens, which differ within an image."""
    return [
        [
            f"What is the main {WORDS[(p + q) % len(WORDS)]} of {'this' if q % 2 else 'the whole'} product?"
            for q in range(each)
        ]
        for p in range(image_count)
    ]


def noise(count: int) -> list[Image.Image]:
    """Images of ABO's small size."""
    numbers = np.random.default_rng(0)
    return [Image.fromarray(numbers.integers(0, 256, (256, 256, 3), dtype=np.uint8)) for _ in range(count)]


class Transformers:
    """transformers' network with the same weights, called as its documentation shows."""

    def __init__(
        self, kind: str, weights: Path, processor: Any, adapter: Path | None, device: torch.device, precision: str
    ) -> None:
        maker = BlipForQuestionAnswering if kind == "blip" else ViltForQuestionAnswering
        self.kind, self.processor, self.device, self.precision = kind, processor, device, precision
        self.net: Any = maker.from_pretrained(weights)
        if adapter is not None:
            self.net = PeftModel.from_pretrained(self.net, str(adapter))
        self.net.to(device).eval()

    def prepare(self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]]) -> dict[str, torch.Tensor]:
        """A batch with an image for every question."""
        flat = [question for group in questions for question in group]
        text = self.processor.tokenizer(flat, padding=True, return_tensors="pt")
        pixels = self.processor.image_processor(list(images), return_tensors="pt")
        counts = torch.tensor([len(group) for group in questions])
        batch = {"input_ids": text["input_ids"], "attention_mask": text["attention_mask"]}
        batch |= {name: tensor.repeat_interleave(counts, 0) for name, tensor in pixels.items()}
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def answer(self, batch: dict[str, torch.Tensor]) -> list[str]:
        """Answers, in the batch's order."""
        with torch.inference_mode(), autocast(self.device, self.precision):
            if self.kind == "vilt":
                best = self.net(**batch).logits.argmax(-1).tolist()
                return [self.net.config.id2label[number] for number in best]
            ids = self.net.generate(**batch, max_new_tokens=TOKENS, num_beams=1, do_sample=False)
            texts: list[str] = self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
            return [text.strip() for text in texts]


def ours(answerer: Answerer, images: Sequence[Image.Image], questions: Sequence[Sequence[str]]) -> Callable[[], Any]:
    """A call that answers a finished batch with each variant of our model."""
    model, device = answerer.model, answerer.device
    batch = {name: tensor.to(device) for name, tensor in model.processor.collate(images, questions).items()}
    return lambda: {name: [a.text for a in answers] for name, answers in answerer.answer_batch(batch).items()}


def make_adapter(kind: str, weights: Path, folder: Path) -> Path:
    """A LoRA adapter with the published settings whose weights are random."""
    model = model_class(kind).load(ModelSettings(kind=kind, weights=str(weights)))
    model.modules_to_save = ()  # type: ignore[misc]  # transformers' side loads it with plain peft
    apply_lora_to_model(model, LoraSettings())
    with torch.no_grad():
        for name, parameter in model.net.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.02)
    model.net.save_pretrained(folder)
    return folder


def measure(image_count: int, each: int, rounds: int, sweep: bool, precision: str = "auto") -> dict[str, Any]:
    """All comparisons; speeds in questions per second."""
    answering = EvaluateSettings(max_new_tokens=TOKENS, precision=precision)  # type: ignore[arg-type]
    figures: dict[str, Any] = {
        "images": image_count,
        "questions_per_image": each,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
    }
    images, questions = noise(image_count), questions_about(image_count, each)
    work = image_count * each
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        weights = make_full_size("blip", folder / "blip")
        adapter = make_adapter("blip", weights, folder / "adapter")
        settings = ModelSettings(kind="blip", weights=str(weights))
        one = Answerer(settings, {"base": None}, answering, folder)
        base = Transformers("blip", weights, one.model.processor, None, one.device, precision)
        batch = base.prepare(images, questions)
        singles = [base.prepare([image], [[q]]) for image, group in zip(images, questions, strict=True) for q in group]

        def alone() -> list[str]:
            return [base.answer(single)[0] for single in singles]

        mine = ours(one, images, questions)
        same = sum(a == b for a, b in zip(mine()["base"], alone(), strict=True))
        figures["same_answers_as_generate_one_at_a_time"] = f"{same} of {work}"
        sides = {"image once": mine, "generate, batched": lambda: base.answer(batch), "generate, one at a time": alone}
        times = alternate(sides, rounds=rounds)
        for theirs in ("generate, batched", "generate, one at a time"):
            figures[f"answering against {theirs}"] = compare(times, "image once", theirs, work=work, unit="questions")
        figures |= compiled_against(mine, settings, answering, images, questions, rounds)
        if sweep:
            figures |= sweeps(one, base, rounds)
        both = Answerer(settings, {"base": None, "lora": adapter}, answering, folder)
        tuned = Transformers("blip", weights, both.model.processor, adapter, both.device, precision)
        sides = {
            "base and adapter in one pass": ours(both, images, questions),
            "generate, batched, for each": lambda: (base.answer(batch), tuned.answer(batch)),
        }
        figures["base and adapter"] = compare(alternate(sides, rounds=rounds), *sides, work=2 * work, unit="answers")
        weights = make_full_size("vilt", folder / "vilt")
        vilt = Answerer(ModelSettings(kind="vilt", weights=str(weights)), {"base": None}, answering, folder)
        plain = Transformers("vilt", weights, vilt.model.processor, None, vilt.device, precision)
        batch = plain.prepare(images, questions)
        sides = {
            "ViLT, image prepared once": ours(vilt, images, questions),
            "ViLT of transformers": lambda: plain.answer(batch),
        }
        figures["ViLT"] = compare(alternate(sides, rounds=2 * rounds + 1), *sides, work=work, unit="questions")
    return figures


def compiled_against(
    plain: Callable[[], Any],
    model: ModelSettings,
    answering: EvaluateSettings,
    images: Sequence[Image.Image],
    questions: Sequence[Sequence[str]],
    rounds: int,
) -> dict[str, Any]:
    """Whether `evaluate.compile` pays on this device: the seconds it takes at the start, and our speed with and without it."""
    compiled = Answerer(model, {"base": None}, answering.model_copy(update={"compile": True}), Path())
    fast = ours(compiled, images, questions)
    began = time.perf_counter()
    try:
        fast()
    except UserError as error:
        return {"torch.compile": f"not measured: {error}"}
    started = time.perf_counter() - began
    times = alternate({"compiled": fast, "not compiled": plain}, rounds=rounds)
    work = sum(map(len, questions))
    return {
        "torch.compile": compare(times, "compiled", "not compiled", work=work, unit="questions"),
        "torch.compile: seconds of the first batch": started,
    }


def sweeps(one: Answerer, base: Transformers, rounds: int) -> dict[str, Any]:
    """Speed by batch size (5 questions per image) and by questions per image (2 images)."""
    found: dict[str, Any] = {}
    for name, shapes in (
        ("batch size", [(1, 5), (2, 5), (4, 5), (8, 5)]),
        ("questions per image", [(2, 1), (2, 2), (2, 5), (2, 10)]),
    ):
        rows = []
        for image_count, each in shapes:
            images, questions = noise(image_count), questions_about(image_count, each)
            batch = base.prepare(images, questions)
            sides = {"image once": ours(one, images, questions), "generate, batched": lambda b=batch: base.answer(b)}
            times = alternate(sides, rounds=max(1, rounds - 1), warm_up=1)
            x = image_count * each if name == "batch size" else each
            rows.append({"x": x, **{side: times[side].per_second(image_count * each) for side in sides}})
        found[f"questions per second by {name}"] = rows
    return found


def main() -> None:
    """Measure, print, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4, help="images in a batch")
    parser.add_argument("--questions", type=int, default=5, help="questions per image")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sweep", action="store_true", help="also other batch sizes and numbers of questions")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--plots", type=Path, help="folder for the plots of --sweep")
    arguments = parser.parse_args()
    figures = measure(arguments.images, arguments.questions, arguments.rounds, arguments.sweep)
    report("answering", figures, arguments.out)
    if arguments.plots and arguments.sweep:
        for name in ("batch size", "questions per image"):
            title = f"questions per second by {name}"
            draw(figures[title], name, "questions per second", arguments.plots / f"{title.replace(' ', '_')}.png")


if __name__ == "__main__":
    main()
