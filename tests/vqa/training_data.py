"""Shared by the tests of training: a tiny BLIP, a few drawn images with questions that can be learned, and settings."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
from PIL import Image, ImageDraw

from data_prep.files import write_json, write_jsonl
from data_prep.records import TEACHER_FILE, Example, Teacher
from tests.conftest import ROOT
from vqa.models.tiny import make_tiny_model
from vqa.settings import LoraSettings, ModelSettings, TrainSettings

COLORS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200), "yellow": (230, 210, 40)}
SHAPES = ("circle", "square")

# LoRA on every linear layer: a tiny base knows nothing, and query and value alone could not teach it.
EVERYWHERE = LoraSettings(targets=["query", "key", "value", "dense", "qkv", "fc1", "fc2", "projection"])


@dataclass(frozen=True)
class Material:
    """A folder of images, curated splits about them, and an untrained tiny model that knows their words."""

    images: Path
    data: Path
    weights: Path
    examples: list[Example]
    validation: list[Example]  # the same questions about copies of the images

    def model(self, **fields: Any) -> ModelSettings:
        """The tiny model, trained in batches of 4 x 1 unless said otherwise."""
        return ModelSettings(
            **{"weights": str(self.weights), "batch_size": 4, "gradient_accumulation": 1, "lora": EVERYWHERE} | fields
        )


def make_material(folder: Path, count: int = 8) -> Material:
    """Draw images of a shape in a color, each with two questions. The validation split asks the same about copies of them."""
    images = folder / "images"
    images.mkdir(parents=True)
    examples = []
    for number in range(count):
        color, shape = list(COLORS)[number % len(COLORS)], SHAPES[number // len(COLORS) % len(SHAPES)]
        image = Image.new("RGB", (80, 60 + 2 * number), "white")
        pen = ImageDraw.Draw(image)
        (pen.ellipse if shape == "circle" else pen.rectangle)((12, 12, 52, 52), COLORS[color])
        image.save(images / f"{number:02}.png")
        for kind, answer in (("color", color), ("shape", shape)):
            examples.append(
                Example(
                    id=f"q{number:02}-{kind}",
                    item_id=f"I{number:02}",
                    image_id=f"P{number:02}",
                    image_path=f"{number:02}.png",
                    question=f"What {kind} is the {'toy' if kind == 'color' else 'big wooden toy'}?",
                    answer=answer,
                    category="easy",
                    question_type=kind,
                    product_type="TOY",
                )
            )
    for image in list(images.iterdir()):
        shutil.copy(image, images / f"v{image.name}")
    validation = [
        replace(e, id=f"v{e.id}", item_id=f"v{e.item_id}", image_id=f"v{e.image_id}", image_path=f"v{e.image_path}")
        for e in examples
    ]
    data = write_splits(folder / "data", examples, validation)
    texts = [text for example in examples for text in (example.question, example.answer)]
    return Material(images, data, make_tiny_model("blip", folder / "weights", texts), examples, validation)


def write_splits(folder: Path, train: Sequence[Example], val: Sequence[Example]) -> Path:
    """A curated dataset."""
    folder.mkdir()
    for split, rows in {"train": train, "val": val, "test": []}.items():
        write_jsonl(folder / f"{split}.jsonl", rows)
    write_json(folder / "stats.json", {})
    write_json(folder / TEACHER_FILE, Teacher("gemini-x", terms=["Read the terms."]))
    return folder


def quick(**fields: Any) -> TrainSettings:
    """Twelve steps of 4 questions over 16 of them, a checkpoint every third step, a log line every step."""
    return TrainSettings(
        **{"epochs": 3, "eval_steps": 3, "logging_steps": 1, "learning_rate": 2e-3, "validation_images": 4} | fields
    )


def start_worker(
    material: Material,
    out: Path,
    model: ModelSettings,
    settings: TrainSettings,
    *,
    rank: int = 0,
    processes: int = 1,
    port: int = 0,
) -> Worker:
    """Training in a process of its own (one of ``processes``), with the signal handling of a task."""
    request = {
        "model": model.model_dump(mode="json"),
        "settings": settings.model_dump(mode="json"),
        "data": str(material.data),
        "image_root": str(material.images),
        "out": str(out),
    }
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    if processes > 1:
        environment |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    said = out.parent / f"{out.name}.{rank}.said"
    with said.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.vqa.training.training_worker", orjson.dumps(request).decode()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=environment,
        )
    return Worker(process, said)


def start_workers(
    processes: int, material: Material, out: Path, model: ModelSettings, settings: TrainSettings
) -> list[Worker]:
    """One training in several processes of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        start_worker(material, out, model, settings, rank=rank, processes=processes, port=port)
        for rank in range(processes)
    ]


@dataclass
class Worker:
    """A process and the file that takes what it prints."""

    process: subprocess.Popen[bytes]
    output: Path

    def ended(self, seconds: float = 240) -> tuple[int, str]:
        """Wait for it: its exit code and all that it (and processes before it with the same folder) printed."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"still running after {seconds} s:\n{self.output.read_text()}") from None
        return code, self.output.read_text()


def log(out: Path, name: str = "log.jsonl") -> list[dict[str, Any]]:
    """The lines of a log, of which a killed process may have left the last one torn."""
    path = out / name
    lines = path.read_bytes().splitlines() if path.is_file() else []
    return [orjson.loads(line) for line in lines if line.endswith(b"}")]


def outcome(out: Path) -> tuple[bytes, bytes]:
    """What a finished training made: the weights of its adapter (the best), and those after its last step."""
    last = out / f"checkpoint-{checkpoint_steps(out)[-1]}"
    adapter, final = ((folder / "adapter_model.safetensors").read_bytes() for folder in (out / "adapter", last))
    return adapter, final


def checkpoint_steps(out: Path) -> Sequence[int]:
    """The steps of the checkpoint folders that are there, whole or not."""
    return sorted(int(path.name.rpartition("-")[2]) for path in out.glob("checkpoint-*"))
