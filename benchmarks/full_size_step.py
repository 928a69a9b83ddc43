"""A few training steps of a full-size model with random weights, by `vqa.training.train.train` as in a run: it fits, and so fast.

    python -m benchmarks.full_size_step [blip|vilt] [--steps N] [--out FILE]

Batches are the configuration's defaults (4 questions, the gradients of 4 batches summed), 5 questions per image as in a run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.full_size import make_data, make_full_size
from benchmarks.measure import report
from vqa.settings import ModelSettings, TrainSettings
from vqa.training.train import train

QUESTIONS_PER_IMAGE = 5


def measure(kind: str, steps: int) -> dict[str, Any]:
    """Losses, seconds per step (without the first, which warms up), peak memory, parameter counts."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        settings = ModelSettings(kind=kind, weights=str(make_full_size(kind, folder / "weights")))
        effective = settings.batch_size * settings.gradient_accumulation
        # One image more than an epoch of that many steps needs is cut off again by `epochs`.
        image_count = -(-steps * effective // QUESTIONS_PER_IMAGE)
        data, images, examples = make_data(folder / "data", image_count, QUESTIONS_PER_IMAGE)
        out = folder / "out"
        began = time.perf_counter()
        train(
            kind,
            settings,
            TrainSettings(epochs=steps / -(-len(examples) // effective), logging_steps=1, eval_steps=steps),
            data=data,
            image_root=images,
            out=out,
        )
        seconds = time.perf_counter() - began
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        times = [line["at"] for line in lines]
        parameters = json.loads((out / "parameters.json").read_text())
        adapter = (out / "adapter" / "adapter_model.safetensors").stat().st_size
        checkpoint = sum(f.stat().st_size for f in (out / f"checkpoint-{steps}").rglob("*") if f.is_file())
    step_seconds = [after - before for before, after in itertools.pairwise(times)]
    return {
        "model": kind,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "batch": f"{settings.batch_size} x {settings.gradient_accumulation}",
        "loss": [round(line["loss"], 4) for line in lines],
        "grad_norm": [round(line["grad_norm"], 3) for line in lines],
        "seconds_per_step": [round(value, 2) for value in step_seconds],
        "questions_per_second": round(effective * len(step_seconds) / sum(step_seconds), 2) if step_seconds else None,
        "seconds_in_all": round(seconds, 1),
        "peak_resident_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "peak_gpu_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if torch.cuda.is_available() else None,
        "adapter_mb": round(adapter / 1e6, 1),
        "checkpoint_mb": round(checkpoint / 1e6, 1),
        "parameters": parameters,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", nargs="?", default="blip", choices=["blip", "vilt"])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    report("full_size_step", measure(arguments.kind, arguments.steps), arguments.out)


if __name__ == "__main__":
    main()
