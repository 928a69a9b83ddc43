"""What a training step keeps in memory for its backward pass, counted at full size. The weights are random: only sizes matter.

    python -m benchmarks.training_memory [blip|vilt] [--full] [--out FILE]

Every tensor that autograd saves is counted once, by its storage, without the weights. Three batches with different numbers of
questions and images separate what a question adds, what an image adds, and what is always there. This is done in fp32 and under
a CPU's autocast to a 2-byte type. A GPU's autocast lies between the two in what a question or image adds (it keeps the inputs of
layer norm and softmax in fp32, a CPU's does not). Its fixed part is that of the CPU's autocast: 2-byte copies of the frozen
weights, since the backward pass goes through those layers too. `launch.py plan` uses the higher of both; see SIZES in
jobs/verbs/plan.py.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.full_size import ANSWER, QUESTION, make_full_size
from benchmarks.measure import report
from vqa.models.base import Model, model_class
from vqa.models.lora import apply_lora_to_model, parameter_table
from vqa.settings import ModelSettings

BATCHES = ((2, 2), (4, 2), (4, 4))  # questions, images
CHECK = (8, 2)
IMAGE = (256, 154)  # ViLT keeps sides up to 5 : 3, and has more patches then; BLIP makes a square of all


def saved_bytes(model: Model, questions: int, image_count: int, mixed: bool) -> int:
    """Bytes that a step saves for its backward pass; ``mixed`` is under autocast."""
    each = questions // image_count
    images = [Image.new("RGB", IMAGE, "grey")] * image_count
    batch = model.processor.collate(images, [[QUESTION] * each] * image_count, [[ANSWER] * each] * image_count)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.net.parameters()}
    # By address: size, and the tensor itself, so that no storage is freed and its address used again.
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    model.net.train()
    casting = torch.autocast("cpu", torch.bfloat16, enabled=mixed)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), casting:
        loss = model.net(**batch)["loss"]
    count = sum(size for size, _ in kept.values())
    del loss
    return count


def measure(kind: str, *, full: bool = False) -> dict[str, Any]:
    """The parts in bytes, in both precisions, and the parameter counts; ``full`` trains all weights instead of LoRA."""
    with tempfile.TemporaryDirectory() as folder:
        settings = ModelSettings(kind=kind, weights=str(make_full_size(kind, Path(folder))))
        model = model_class(kind).load(settings, [ANSWER])
    if full:
        model.net.requires_grad_(True)
    else:
        apply_lora_to_model(model, settings.lora)
    return {
        "model": kind,
        "trained": "all weights" if full else "LoRA",
        "fp32": parts(model, mixed=False),
        "autocast": parts(model, mixed=True),
        "parameters": asdict(parameter_table(model)),
    }


def parts(model: Model, *, mixed: bool) -> dict[str, float]:
    """Bytes per question, per image and always, and how well they predict another batch."""
    first, more_questions, more_images, check = (saved_bytes(model, *batch, mixed) for batch in (*BATCHES, CHECK))
    question = (more_questions - first) / 2
    image = (more_images - more_questions) / 2
    always = first - 2 * question - 2 * image
    return {
        "bytes_per_question": round(question),
        "bytes_per_image": round(image),
        "bytes_always": round(always),
        "prediction_over_count": (always + CHECK[0] * question + CHECK[1] * image) / check,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", nargs="?", default="blip", choices=["blip", "vilt"])
    parser.add_argument("--full", action="store_true", help="full fine-tuning instead of LoRA")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    report("training_memory", measure(arguments.kind, full=arguments.full), arguments.out)


if __name__ == "__main__":
    main()
