"""Which weights a model starts from: those that the configuration names, or tiny ones that the run makes itself.

``weights: tiny`` is for the demo, for tests and for a first run on one's own data: a small model with a tokenizer made on the
spot, trained from nothing on the easy questions about one half of the training pictures, so that "base" means something. LoRA then
has the other half, with all of its questions.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from data_prep.records import Example, read_jsonl, write_jsonl
from jobs.config import Config
from jobs.loop import shard_of
from jobs.rundir import RunDir
from vqa.settings import TINY, ModelSettings

# What the tiny base is taught: the easy questions (or all, where none has a category), so that LoRA has something to add.
TAUGHT = ("easy", "")


def model_settings(run: RunDir, config: Config, target: str) -> ModelSettings:
    """The model's settings, with the folder of the run's own weights in place of ``tiny``."""
    settings = config.models[target]
    return settings.model_copy(update={"weights": str(run.tiny_base(target))}) if settings.weights == TINY else settings


def halves(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Training questions for the tiny base, and for LoRA; divided by picture group, by hash."""
    parts: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        parts[shard_of(example.picture_group or example.image_id, 2)].append(example)
    return parts


def make_tiny_base(run: RunDir, config: Config, target: str) -> Path:
    """Make the tiny base of a model if it is not there yet; the folder of splits that is left for LoRA.

    It appears whole or not at all, so a kill in the middle only costs the time.
    """
    from vqa.tiny import make_tiny_model, pretrain  # torch

    folder = run.tiny_base(target)
    data = folder.parent / "lora-data"
    settings = config.models[target]
    base_half, lora_half = halves(list(read_jsonl(run.split("train"), Example)))
    texts = [text for example in [*base_half, *lora_half] for text in (example.question, example.answer)]
    base_half = [example for example in base_half if example.category in TAUGHT]
    if not (folder / "config.json").is_file():
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        make_tiny_model(settings.kind, part, texts)
        print(f"{target}: training a tiny base on {len(base_half):,} questions", flush=True)
        pretrain(
            part,
            settings.kind,
            base_half,
            config.data.image_root,
            epochs=settings.tiny_epochs,
            progress=lambda step, steps, loss: _say(step, steps, loss),
        )
        part.rename(folder)
    write_jsonl(data / "train.jsonl", lora_half)
    for name in ("val.jsonl", "test.jsonl", "stats.json"):
        shutil.copyfile(run.dataset / name, data / name)
    return data


def _say(step: int, steps: int, loss: float) -> None:
    if step % 50 == 0 or step == steps:
        print(f"  tiny base: step {step} of {steps}, loss {loss:.3f}", flush=True)
