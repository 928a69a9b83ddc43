"""On a GPU: the comparisons of answering and training, with model FLOPs utilization, peak memory and the share of waiting.

    python -m benchmarks.gpu [--rounds N] [--out FILE] [--plots FOLDER]

Runs twice, each time in a new process: in fp16 with at most 16 GB of the GPU's memory, as a T4 has, and in bf16 with all of it.

Utilization is counted operations divided by seconds and the GPU's peak for dense tensors of that type, from the data sheet. The
operations are those of our network (`torch.utils.flop_counter`): what transformers computes twice is not work.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import answering, training_step
from benchmarks.full_size import make_data, make_full_size
from benchmarks.measure import Comparison, report
from benchmarks.plots import draw
from data_prep.outcomes import Failed, Ok, Todo
from vqa.inference.answerer import Answerer, autocast
from vqa.models.base import Batch, Model
from vqa.settings import EvaluateSettings, ModelSettings

RUNS = {"fp16": 16.0, "bf16": None}  # GB of memory that may be used
# Operations a second in half precision, dense: the makers' data sheets.
PEAKS = {"T4": 65e12, "V100": 125e12, "L4": 121e12, "A10": 125e12, "A100": 312e12, "H100": 989e12, "H200": 989e12}
QUESTIONS_PER_IMAGE = 5


def peak_of(name: str) -> float | None:
    """The peak of a GPU by name; None if it is not listed."""
    return next((PEAKS[word] for word in name.replace("-", " ").split() if word in PEAKS), None)


def operations(do: Callable[[], object]) -> float:
    """Floating-point operations of a call: a multiplication and an addition are two."""
    with FlopCounterMode(display=False) as counter:
        do()
    return float(counter.get_total_flops())


def utilization(a_question: float, questions_per_second: float, peak: float | None) -> float | None:
    """Share of the peak, 0 to 1."""
    return None if peak is None else a_question * questions_per_second / peak


def answer_from_files(weights: Path, folder: Path, image_count: int, precision: str, batch: int) -> dict[str, Any]:
    """Answer as a task of the stage does, with images decoded from files: the speed, and how long the GPU waited."""
    _, images, examples = make_data(folder, image_count, QUESTIONS_PER_IMAGE)
    settings = EvaluateSettings(precision=precision, batch_size=batch, max_new_tokens=answering.TOKENS)  # type: ignore[arg-type]
    answerer = Answerer(ModelSettings(weights=str(weights)), {"base": None}, settings, images)
    answered = 0

    def record(outcome: Ok | Failed, *, durable: bool = False) -> None:
        nonlocal answered
        answered += isinstance(outcome, Ok)

    answerer.process(Todo(example, record, "base") for example in examples[: 2 * batch])
    answerer.seconds = answerer.waited = 0.0
    answered = 0
    answerer.process(Todo(example, record, "base") for example in examples)
    shown = answering.noise(2)
    asked = answering.questions_about(2, QUESTIONS_PER_IMAGE)
    collated = answerer.model.processor.collate(shown, asked)
    flop = operations(lambda: answerer.answer_batch(collated)) / (2 * QUESTIONS_PER_IMAGE)
    return {
        "questions": answered,
        "questions_per_second": answered / answerer.seconds,
        "share_of_waiting": answerer.waited / answerer.seconds,
        "gflop_per_question": flop / 1e9,
    }


def training_operations(model: Model, batch: Batch, precision: str) -> float:
    """Operations per question of a training step, forward and backward."""
    device = next(model.net.parameters()).device
    moved = {name: tensor.to(device) for name, tensor in batch.items()}

    def step() -> None:
        with autocast(device, precision):
            loss = model.net(**moved)["loss"]
        loss.backward()

    model.net.train()
    return operations(step) / len(batch["input_ids"])


def measure(precision: str, memory: float | None, rounds: int) -> dict[str, Any]:
    """All figures of one precision, on this process's GPU."""
    properties = torch.cuda.get_device_properties(0)
    if memory is not None and memory * 1e9 < properties.total_memory:
        torch.cuda.set_per_process_memory_fraction(memory * 1e9 / properties.total_memory)
    peak = peak_of(properties.name)
    figures: dict[str, Any] = {
        "device": properties.name,
        "memory_gb": properties.total_memory / 1e9,
        "may_use_gb": memory,
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        weights = make_full_size("blip", folder / "weights")
        found = answer_from_files(weights, folder / "files", 400, precision, batch=160)
        found["model_flops_utilization"] = utilization(
            found["gflop_per_question"] * 1e9, found["questions_per_second"], peak
        )
        figures["answering from files"] = found | _memory()
        figures |= answering.measure(16, QUESTIONS_PER_IMAGE, rounds, sweep=True, precision=precision)
        figures["answering, memory"] = _memory()
        trained = training_step.measure_speed(weights, folder / "training", rounds, 5, precision=precision)
        model = training_step.load_ours(weights)
        model.net.cuda()
        shown, asked = answering.noise(4), answering.questions_about(4, QUESTIONS_PER_IMAGE)
        batch = model.processor.collate(shown, asked, [["red"] * QUESTIONS_PER_IMAGE] * 4)
        flop = training_operations(model, batch, precision)
        for name, value in trained.items():
            figures[f"training: {name}"] = value
            if isinstance(value, Comparison):
                used = utilization(flop, value.per_second[value.ours], peak)
                figures[f"training: {name}, model_flops_utilization"] = used
        figures["training, memory"] = _memory()
    return figures


def _memory() -> dict[str, float]:
    """Highest memory in GB since the last look."""
    torch.cuda.synchronize()
    found = {
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
        "peak_reserved_gb": torch.cuda.max_memory_reserved() / 1e9,
    }
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return found


def main() -> int:
    """Measure each precision in a process of its own; print, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks/gpu.json"))
    parser.add_argument("--plots", type=Path, help="folder for speed against batch size and questions per image")
    parser.add_argument("--precision", choices=list(RUNS), help="only this one, in this process")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no GPU here: nothing was measured. The other benchmarks run without one.", file=sys.stderr)
        return 1
    if arguments.precision is not None:
        report(
            f"gpu_{arguments.precision}",
            measure(arguments.precision, RUNS[arguments.precision], arguments.rounds),
            arguments.out,
        )
        return 0
    for precision in RUNS:
        part = arguments.out.with_stem(f"{arguments.out.stem}_{precision}")
        command = [sys.executable, "-m", "benchmarks.gpu", "--precision", precision, "--rounds", str(arguments.rounds)]
        print(f"{precision}:", flush=True)
        subprocess.run([*command, "--out", str(part)], check=True)
        if arguments.plots:
            figures = json.loads(part.read_text())
            for name in ("batch size", "questions per image"):
                title = f"questions per second by {name}"
                out = arguments.plots / f"{precision}_{title.replace(' ', '_')}.png"
                draw(figures[title], name, "questions per second", out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
