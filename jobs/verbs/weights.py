"""Where base weights come from: ``fetch`` downloads the published ones; ``tiny-base`` makes a model small enough to be made here,
for the demo, or to try one's own data without a GPU."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from data_prep.demo.lessons import render_lessons
from data_prep.demo.questions import vocabulary
from data_prep.files import read_jsonl
from data_prep.outcomes import UserError
from jobs.config import DEFAULT_CONFIG, load_config
from jobs.progress_line import ProgressLine
from jobs.run.contents import download

IMAGES = 4000


def fetch(config: Path | None, overrides: Sequence[str], out: Console) -> None:
    """Download the weights of every model of a configuration into the cache, on a machine with internet.

    Raises:
        UserError: they cannot be had.
    """
    for name, model in load_config(
        config or DEFAULT_CONFIG, overrides, unread=("data", "generate", "verify")
    ).models.items():
        if Path(model.weights).is_dir():
            out.print(f"{name}: {model.weights} is a folder", markup=False)
        else:
            out.print(f"{name}: {model.weights} is in {download(model.weights)}", markup=False)


def make_tiny_base(
    folder: Path, kind: str, words: Sequence[Path], console: Console, *, images: int = IMAGES, seed: int = 0
) -> None:
    """Teach a tiny model on drawn images and write it into a folder, complete or not at all.

    Args:
        folder: takes weights, configuration, tokenizer and image processor; must not be there yet.
        kind: blip or vilt.
        words: JSONL files with ``qas``, whose words the tokenizer is to know besides those of the demo.
        console: takes the progress.
        images: how many are drawn.
        seed: of the images and the weights.

    Raises:
        UserError: the folder is there, or a file of words cannot be read.
    """
    if folder.exists():
        raise UserError(f"{folder} exists already: delete it, or name another folder.")
    texts = vocabulary() + [text for file in words for text in _texts(file)]
    from vqa.models.base import quiet_loading
    from vqa.models.tiny import IMAGE_SIZE, make_tiny_model, pretrain  # torch takes seconds to import

    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    with tempfile.TemporaryDirectory() as drawn:
        say = ProgressLine(console, "drawing images for the base")
        examples = render_lessons(Path(drawn), images=images, size=IMAGE_SIZE, seed=seed, progress=say)
        with quiet_loading():
            make_tiny_model(kind, part, texts, seed=seed)
            pretrain(part, kind, examples, Path(drawn), progress=ProgressLine(console, "training the base"))
    part.rename(folder)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A line of facts.jsonl, as far as words are concerned."""

    qas: list[dict[str, str]]


def _texts(file: Path) -> list[str]:
    """Every question and answer of a file such as facts.jsonl.

    Raises:
        UserError: there is no such file, or its lines have no questions.
    """
    try:
        asked = list(read_jsonl(file, _Asked))
        return [text for row in asked for pair in row.qas for text in (pair["question"], pair["answer"])]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f'Cannot read words from {file}: each line must hold {{"qas": [{{"question": ..., "answer": ...}}]}}.'
        ) from error
