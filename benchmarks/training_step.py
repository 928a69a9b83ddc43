"""Training at full size with images encoded once for their questions, against the plain Trainer; and whether keeping an image's
questions together costs accuracy.

    python -m benchmarks.training_step [--rounds N] [--steps N] [--seeds N] [--out FILE] [--plots FOLDER]

Speed: both sides are the HF Trainer with the same weights, the same LoRA (query and value, r = 16; no dropout), AdamW, fp32,
the same questions (5 an image, 384 px) and 16 of them in an optimizer step: 4 in a batch and the gradients of 4 batches
summed, as our defaults say, or all 16 in one batch. A turn is a whole `Trainer.train()` of some optimizer steps.

- "image once" is `vqa.training.trainer.LoraTrainer` as in a run: batches in which an image's questions are together, from
  decoded images held in memory. Its time includes making pixels and tokens of them.
- "Trainer" is `transformers.Trainer` with `default_data_collator` over a dataset of finished tensors: tokens, and the pixel
  values of the question's own image. The network is `BlipForQuestionAnswering` within peft, with explicit decoder inputs that
  start with [DEC] and with our labels. Its loss is divided by the accumulated batches, as ours is.

Neither writes checkpoints. Neither has gradients in the vision tower: peft freezes all but the adapters, and the tower has none.
So the comparison is between running the tower for every question and once per image; likewise the keys and values of
cross-attention.

Loss: a tiny model is pretrained on some drawn images, then trained with LoRA on questions about others, by `LoraTrainer` both
times: once in its own order, once with all questions shuffled. The questions and their number per optimizer step are the same;
the loss is that of questions about held-out images. This is repeated with several seeds (of order and adapter), and differences
are taken between the two trainings of a seed.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    BlipForQuestionAnswering,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    default_data_collator,
)
from transformers.trainer_utils import set_seed

from benchmarks.full_size import make_data, make_full_size
from benchmarks.measure import alternate, compare, report
from benchmarks.plots import draw
from data_prep.demo import drawing
from data_prep.records import Example
from vqa.dataset import VQADataset, as_batch, open_image
from vqa.models.base import Batch, Model, model_class
from vqa.models.lora import apply_lora_to_model
from vqa.models.tiny import Pretraining, make_tiny_model, pretrain
from vqa.settings import LoraSettings, ModelSettings, TrainSettings
from vqa.training.trainer import LoraTrainer, training_arguments

QUESTIONS_PER_IMAGE = 5
BATCHES = ((4, 4), (16, 1))  # questions in a batch, batches in an optimizer step
EFFECTIVE = 16
LORA = LoraSettings(dropout=0.0)
# On every linear layer, the image encoder's too: query and value alone could not teach a tiny model that has seen little.
TINY_LORA = LoraSettings(dropout=0.0, targets=["query", "key", "value", "dense", "qkv", "fc1", "fc2", "projection"])


def distinct(examples: Sequence[Example]) -> list[Example]:
    """The examples with distinct questions and answers of one length, so that no batch has padding.

    transformers' decoder attends to the questions' padding, so that with padding the two sides would have different losses.
    """
    return [
        replace(example, question=f"What is the word{number} of the product in this image?", answer=f"word{number}")
        for number, example in enumerate(examples)
    ]


def load_ours(weights: Path) -> Model:
    """Our network, with adapters that are not zero."""
    torch.manual_seed(0)
    model = apply_lora_to_model(model_class("blip").load(ModelSettings(weights=str(weights))), LORA)
    with torch.no_grad():
        for name, parameter in model.net.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.02)
    return model


def load_theirs(weights: Path, ours: Model) -> Any:
    """transformers' own network within peft, with the weights and adapters of ours."""
    config = LoraConfig(
        r=LORA.r, lora_alpha=LORA.alpha, lora_dropout=LORA.dropout, target_modules=list(ours.lora_targets)
    )
    net: Any = get_peft_model(BlipForQuestionAnswering.from_pretrained(weights), config)
    net.load_state_dict(ours.net.state_dict())
    return net


def finished_rows(model: Model, examples: Sequence[Example], images: Path) -> list[dict[str, torch.Tensor]]:
    """What transformers' network takes: a row per question, with its own image."""
    processor: Any = model.processor
    seen = {
        path: processor.image_processor(open_image(images, path), return_tensors="pt")["pixel_values"][0]
        for path in {example.image_path for example in examples}
    }
    rows = []
    for example in examples:
        question = processor.tokenizer(example.question, return_tensors="pt")
        text = {"input_ids": question["input_ids"], "attention_mask": question["attention_mask"]}
        text |= processor.targets([example.answer])
        rows.append({"pixel_values": seen[example.image_path], **{name: tensor[0] for name, tensor in text.items()}})
    return rows


def our_trainer(
    model: Model, examples: Sequence[Example], images: Path, batch: tuple[int, int], out: Path, settings: TrainSettings
) -> LoraTrainer:
    """The trainer of a run, without checkpoints; decoded images stay in memory."""
    data = VQADataset(examples, images, model.processor, cache=True)
    arguments = training_arguments(settings, out, len(data), *batch)
    arguments.save_strategy = "no"  # type: ignore[assignment]
    return LoraTrainer(settings, model=model.net, args=arguments, train_dataset=data, data_collator=as_batch)


def their_trainer(net: Any, rows: list[dict[str, torch.Tensor]], arguments: TrainingArguments) -> Trainer:
    """The plain trainer."""
    dataset: Any = rows
    trainer = Trainer(model=net, args=arguments, train_dataset=dataset, data_collator=default_data_collator)
    # BLIP takes the number of items and ignores it; the trainer would take the sum of accumulated batches for their mean.
    trainer.model_accepts_loss_kwargs = False
    return trainer


def collated(trainer: Trainer, rows: Sequence[int]) -> Any:
    """A batch as the trainer's DataLoader makes it."""
    data: Any = trainer.train_dataset
    samples = data.__getitems__(rows) if hasattr(data, "__getitems__") else [data[row] for row in rows]
    return trainer.data_collator(samples)


def loss_of(trainer: Trainer, count: int) -> float:
    """The mean loss of the first questions, in batches as they are trained on."""
    size = trainer.args.per_device_train_batch_size
    model: Any = trainer.model
    total = 0.0
    model.train()
    with torch.no_grad():
        for first in range(0, count, size):
            rows = range(first, min(first + size, count))
            batch: Any = trainer._prepare_inputs(collated(trainer, rows))
            total += float(trainer.compute_loss(model, batch)) * len(rows)
    return total / count


def measure_speed(
    weights: Path, folder: Path, rounds: int, steps: int, precision: Literal["fp32", "fp16", "bf16"] = "fp32"
) -> dict[str, Any]:
    """Both sides with both batch sizes, in turns; speeds in questions per second."""
    image_count = -(-steps * EFFECTIVE // QUESTIONS_PER_IMAGE)
    _, images, examples = make_data(folder / "data", image_count, QUESTIONS_PER_IMAGE)
    examples = distinct(examples)[: steps * EFFECTIVE]
    model = load_ours(weights)
    net = load_theirs(weights, model)
    rows = finished_rows(model, examples, images)
    settings = TrainSettings(epochs=1, precision=precision)
    trainers: dict[str, Trainer] = {}
    for batch in BATCHES:
        size = f"{batch[0]} x {batch[1]}"
        ours = our_trainer(model, examples, images, batch, folder / "ours", settings)
        trainers |= {f"image once, {size}": ours, f"Trainer, {size}": their_trainer(net, rows, ours.args)}
    figures: dict[str, Any] = {
        "questions": len(examples),
        "images": image_count,
        "optimizer_steps": steps,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "loss of the same questions": {name: loss_of(t, min(20, len(rows))) for name, t in trainers.items()},
    }
    for trainer in trainers.values():  # warm up by one step: a whole turn is minutes
        trainer.args.max_steps = 1
        trainer.train()
        trainer.args.max_steps = -1
    sides: dict[str, Callable[[], Any]] = {name: trainer.train for name, trainer in trainers.items()}
    times = alternate(sides, rounds=rounds, warm_up=0)
    for mine, plain in (("4 x 4", "4 x 4"), ("16 x 1", "16 x 1"), ("16 x 1", "4 x 4")):
        names = f"image once, {mine}", f"Trainer, {plain}"
        figures[f"training, {mine} against {plain}"] = compare(times, *names, work=len(examples), unit="questions")
    return figures


def drawn_examples(folder: Path, image_count: int) -> list[Example]:
    """Drawn products with 5 questions each."""
    folder.mkdir(parents=True)
    chance = random.Random(0)
    examples = []
    for number in range(image_count):
        look = drawing.random_look(chance)
        drawing.draw(look).save(folder / f"{number}.png")
        asked = {
            "What product is shown?": look.noun,
            "What color is it?": look.color,
            "What pattern does it have?": look.pattern,
            "How many are there?": look.count,
            f"Is this a {chance.choice([look.noun, chance.choice(drawing.NOUNS)])}?": "",
        }
        for place, (question, answer) in enumerate(asked.items()):
            examples.append(
                Example(
                    id=f"{number}-{place}",
                    item_id=f"I{number}",
                    image_id=f"P{number}",
                    image_path=f"{number}.png",
                    question=question,
                    answer=answer or ("yes" if look.noun in question else "no"),
                    category="",
                    question_type="",
                    product_type="ANY",
                )
            )
    return examples


class HeldOut(TrainerCallback):
    """The loss of held-out questions every few optimizer steps, and before the first."""

    def __init__(self, model: Model, batches: Sequence[Batch], every: int) -> None:
        self.model, self.batches, self.every = model, batches, every
        self.losses: list[float] = []

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Before the first step."""
        if state.global_step == 0:
            self._measure()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """At every so many steps."""
        if state.global_step % self.every == 0:
            self._measure()

    def _measure(self) -> None:
        self.model.net.eval()
        with torch.no_grad():
            found = [float(self.model.net(**batch)["loss"]) for batch in self.batches]
        self.model.net.train()
        self.losses.append(statistics.fmean(found))


def measure_losses(folder: Path, image_count: int, seeds: int, epochs: int = 8, base_epochs: int = 9) -> dict[str, Any]:
    """Losses over questions seen, in both orders.

    Args:
        folder: takes images and weights.
        image_count: two fifths of the images make the base, two fifths train the adapters, one fifth is held out.
        seeds: number of pairs of trainings.
        epochs: of the adapters.
        base_epochs: of the base.
    """
    images = folder / "images"
    examples = drawn_examples(images, image_count)
    fifth = image_count // 5 * QUESTIONS_PER_IMAGE
    base, train, held_out = examples[: 2 * fifth], examples[2 * fifth : 4 * fifth], examples[4 * fifth :]
    weights = make_tiny_model("blip", folder / "tiny", [text for e in examples for text in (e.question, e.answer)])
    pretrain(weights, "blip", base, images, Pretraining(epochs=base_epochs, batch_size=20))
    steps = -(-len(train) // EFFECTIVE) * epochs
    every = max(1, steps // 12)
    curves: dict[str, list[list[float]]] = {"kept together": [], "shuffled": []}
    for seed in range(seeds):
        for name, curve in curves.items():
            set_seed(seed)
            model = apply_lora_to_model(model_class("blip").load(ModelSettings(weights=str(weights))), TINY_LORA)
            settings = TrainSettings(epochs=epochs, learning_rate=2e-3, seed=seed, precision="fp32")
            trainer = our_trainer(model, train, images, BATCHES[1], folder / "out", settings)
            if name == "shuffled":
                trainer.order._groups = [[row] for row in range(len(train))]  # each question a group of its own
            data = VQADataset(held_out, images, model.processor, cache=True)
            batches = [
                data.__getitems__(range(first, min(first + 100, len(data)))) for first in range(0, len(data), 100)
            ]
            watch = HeldOut(model, batches, every)
            trainer.add_callback(watch)
            trainer.train()
            curve.append(watch.losses)
    return in_figures(curves, [EFFECTIVE * every * mark for mark in range(len(curves["shuffled"][0]))])


def in_figures(curves: dict[str, list[list[float]]], seen: Sequence[int]) -> dict[str, Any]:
    """Means and standard deviations over the seeds, and the differences of pairs at the end and over the whole curve."""

    def spread(values: Sequence[float]) -> dict[str, Any]:
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        return {"mean": statistics.fmean(values), "standard_deviation": deviation, "each": list(values)}

    pairs = list(zip(curves["kept together"], curves["shuffled"], strict=True))
    return {
        "held-out loss by questions seen": [
            {"x": x, **{name: statistics.fmean(curve[mark] for curve in runs) for name, runs in curves.items()}}
            for mark, x in enumerate(seen)
        ],
        "held-out loss at the end": {name: spread([curve[-1] for curve in runs]) for name, runs in curves.items()},
        "kept together minus shuffled": {
            "at the end": spread([together[-1] - shuffled[-1] for together, shuffled in pairs]),
            "mean over the curve": spread(
                [statistics.fmean(together) - statistics.fmean(shuffled) for together, shuffled in pairs]
            ),
        },
        "curves of all seeds": curves,
    }


def main() -> None:
    """Measure, print, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps in a turn, of 16 questions each")
    parser.add_argument("--seeds", type=int, default=5, help="pairs of trainings whose losses are compared")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--plots", type=Path, help="folder for the plot of the losses")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if arguments.seeds:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # several are slower for a tiny model
            figures |= measure_losses(folder / "losses", image_count=750, seeds=arguments.seeds)
            torch.set_num_threads(threads)
        if arguments.rounds:
            weights = make_full_size("blip", folder / "weights")
            figures |= measure_speed(weights, folder / "speed", arguments.rounds, arguments.steps)
    report("training_step", figures, arguments.out)
    if arguments.plots and arguments.seeds:
        rows = figures["held-out loss by questions seen"]
        draw(rows, "questions seen", "held-out loss", arguments.plots / "training_order.png")


if __name__ == "__main__":
    main()
