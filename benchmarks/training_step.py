"""A training step at full size, a question: pictures encoded once for their questions, against what people call.

    python -m benchmarks.training_step [--rounds N] [--steps N] [--out FILE]

Both sides are the HF Trainer with the same weights, the same LoRA (query and value, r = 16, dropout 0), AdamW, fp32, the same
questions (5 a picture, 384 px), 4 in a batch and the gradients of 4 batches summed, as our defaults say; and once more with 16
in a batch. A turn is a whole `Trainer.train()` of some optimiser steps.

- "image once" is `vqa.trainer.LoraTrainer` as a run has it: batches of questions that are grouped by picture, from decoded
  pictures held in memory. Making pixels and tokens of them is in the time.
- "Trainer" is `transformers.Trainer` with `default_data_collator` over a data set that holds finished tensors: tokens, and the
  pixel values of the question's own picture. The network is `BlipForQuestionAnswering` within peft, with explicit decoder
  inputs that start with [DEC], and our labels. Its loss is divided by the accumulated batches, as ours is.

Neither writes checkpoints. In neither has the vision tower gradients: peft freezes all but the adapters, and no adapter is
there; so what is compared is going through it for every question, with going through it once.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import BlipForQuestionAnswering, Trainer, default_data_collator

from benchmarks.full_size import make_data, make_full_size
from benchmarks.measure import alternate, compare, report
from data_prep.records import Example
from vqa.dataset import VQADataset, open_picture
from vqa.lora import apply_lora_to_model
from vqa.models.base import Model, model_class
from vqa.settings import LoraSettings, ModelSettings, TrainSettings
from vqa.trainer import LoraTrainer, training_arguments

QUESTIONS_A_PICTURE = 5
BATCHES = ((4, 4), (16, 1))  # questions in a batch, batches in an optimiser step
LORA = LoraSettings(dropout=0.0)


def distinct(examples: Sequence[Example]) -> list[Example]:
    """The examples with questions and answers that differ, all of one length, so that no padding is in any batch.

    transformers ignores the padding of questions in part, so with it the two sides would not compute the same loss.
    """
    return [
        replace(example, question=f"What is the word{number} of the product in this picture?", answer=f"word{number}")
        for number, example in enumerate(examples)
    ]


def load_ours(weights: Path) -> Model:
    """Our network with adapters that change its answers."""
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


def tensors(model: Model, examples: Sequence[Example], images: Path) -> list[dict[str, torch.Tensor]]:
    """What transformers' network takes, finished: a question each, with its own picture."""
    seen = {
        path: model.processor.images(open_picture(images, path), return_tensors="pt")["pixel_values"][0]
        for path in {example.image_path for example in examples}
    }
    rows = []
    for example in examples:
        question = model.processor.tokenizer(example.question, return_tensors="pt")
        targets = model.processor.targets([example.answer])
        row = {"input_ids": question["input_ids"], "attention_mask": question["attention_mask"], **targets}
        rows.append({"pixel_values": seen[example.image_path], **{name: tensor[0] for name, tensor in row.items()}})
    return rows


def our_trainer(model: Model, examples: list[Example], images: Path, batch: tuple[int, int], out: Path) -> LoraTrainer:
    """The trainer of a run, without checkpoints."""
    settings, data = TrainSettings(epochs=1), VQADataset(examples, images)
    arguments = training_arguments(settings, out, len(data), *batch)
    arguments.save_strategy = "no"
    collator = data.collator(model.processor, cache=True)
    return LoraTrainer(settings, model=model.net, args=arguments, train_dataset=data, data_collator=collator)


def their_trainer(net: Any, rows: list[dict[str, torch.Tensor]], batch: tuple[int, int], out: Path) -> Trainer:
    """The plain trainer with the same arguments."""
    arguments = training_arguments(TrainSettings(epochs=1), out, len(rows), *batch)
    arguments.save_strategy = "no"
    trainer = Trainer(model=net, args=arguments, train_dataset=rows, data_collator=default_data_collator)  # type: ignore[arg-type]
    # BLIP takes the number of items and ignores it; the trainer would take the sum of accumulated batches for their mean.
    trainer.model_accepts_loss_kwargs = False
    return trainer


def losses(ours: Trainer, theirs: Trainer, count: int) -> dict[str, float]:
    """The loss of both sides for the same first questions, in batches as they train on."""
    size = ours.args.per_device_train_batch_size
    found = {}
    for name, trainer in {"image once": ours, "Trainer": theirs}.items():
        data: Any = trainer.train_dataset
        total = 0.0
        trainer.model.train()
        with torch.no_grad():
            for first in range(0, count, size):
                batch = trainer.data_collator([data[row] for row in range(first, min(first + size, count))])
                total += float(trainer.compute_loss(trainer.model, dict(batch))) * min(size, count - first)
        found[name] = total / count
    return found


def measure_speed(weights: Path, folder: Path, rounds: int, steps: int) -> dict[str, Any]:
    """Both sizes of batch; speeds in questions a second."""
    effective = BATCHES[0][0] * BATCHES[0][1]
    pictures = -(-steps * effective // QUESTIONS_A_PICTURE)
    _, images, examples = make_data(folder / "data", pictures, QUESTIONS_A_PICTURE)
    examples = distinct(examples)[: steps * effective]
    model = load_ours(weights)
    net = load_theirs(weights, model)
    rows = tensors(model, examples, images)
    figures: dict[str, Any] = {"questions": len(examples), "pictures": pictures, "optimiser_steps": steps}
    figures["threads"] = torch.get_num_threads()
    for batch in BATCHES:
        ours = our_trainer(model, examples, images, batch, folder / "ours")
        theirs = their_trainer(net, rows, batch, folder / "theirs")
        size = f"{batch[0]} x {batch[1]}"
        if batch == BATCHES[0]:
            figures["loss of the same questions"] = losses(ours, theirs, min(len(rows), 20))
        sides: dict[str, Callable[[], Any]] = {f"image once, {size}": ours.train, f"Trainer, {size}": theirs.train}
        times = alternate(sides, rounds=rounds)
        figures[f"training, {size}"] = compare(times, *sides, work=len(examples), unit="questions")
    return figures


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="optimiser steps in a turn, of 16 questions each")
    parser.add_argument("--out", type=Path, help="JSON file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        weights = make_full_size("blip", folder / "weights")
        figures = measure_speed(weights, folder, arguments.rounds, arguments.steps)
    report("training_step", figures, arguments.out)


if __name__ == "__main__":
    main()
