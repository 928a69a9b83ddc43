"""Which weights a model starts from: those that the configuration names, or tiny ones that the run makes itself.

``weights: tiny`` is for the demo, for tests and for a first run on one's own data: a small model with a tokenizer made on the
spot, trained from nothing on the easy questions about one half of the training images, so that "base" means something. LoRA then
has the other half, with all of its questions.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from data_prep.files import read_jsonl, write_jsonl
from data_prep.records import Example
from jobs.config import Config
from jobs.run.layout import TINY_LOG, RunDir
from jobs.shards.store import shard_of
from vqa.settings import TINY, ModelSettings

# What the tiny base is taught: the easy questions (or all, where none has a category), so that LoRA has something to add.
TAUGHT = ("easy", "")


def model_settings(run: RunDir, config: Config, target: str) -> ModelSettings:
    """The model's settings, with the folder of the run's own weights in place of ``tiny``."""
    settings = config.models[target]
    return settings.model_copy(update={"weights": str(run.tiny_base(target))}) if settings.weights == TINY else settings


def halves(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Training questions for the tiny base, and for LoRA; divided by image group, by hash."""
    parts: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        parts[shard_of(example.image_group or example.image_id, 2)].append(example)
    return parts


def make_tiny_base(run: RunDir, config: Config, target: str) -> Path:
    """Make the tiny base of a model if it is not there yet; the folder of splits that is left for LoRA.

    Both folders appear whole or not at all, so a kill in the middle only costs the time. Of the processes of a distributed
    training the first makes them and the others wait.
    """
    folder = run.tiny_base(target)
    data = run.tiny_rest(target)
    if os.environ.get("RANK", "0") != "0":
        while not (folder.is_dir() and data.is_dir()):
            time.sleep(0.5)
        return data
    base_half, lora_half = halves(list(read_jsonl(run.split("train"), Example)))
    if not folder.is_dir():
        _teach(config, target, folder, base_half, lora_half)
    if not data.is_dir():
        part = data.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        write_jsonl(part / "train.jsonl", lora_half)
        for name in ("val.jsonl", "test.jsonl", "stats.json"):
            shutil.copyfile(run.dataset / name, part / name)
        part.rename(data)
    return data


def _teach(
    config: Config, target: str, folder: Path, base_half: Sequence[Example], lora_half: Sequence[Example]
) -> None:
    from vqa.models.tiny import make_tiny_model, pretrain
    from vqa.training.logs import append  # torch

    settings = config.models[target]
    texts = [text for example in [*base_half, *lora_half] for text in (example.question, example.answer)]
    taught = [example for example in base_half if example.category in TAUGHT]
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    make_tiny_model(settings.kind, part, texts)
    print(f"{target}: training a tiny base on {len(taught):,} questions", flush=True)

    def say(step: int, steps: int, loss: float) -> None:
        if step % 25 == 0 or step == steps:
            print(f"  tiny base: step {step} of {steps}, loss {loss:.3f}", flush=True)
            append(folder.parent / TINY_LOG, {"step": step, "max_steps": steps, "loss": loss})

    pretrain(
        part,
        settings.kind,
        taught,
        config.data.image_root,
        epochs=settings.tiny_epochs,
        progress=say,
    )
    part.rename(folder)
