"""The curated splits as batches: every image decoded once a batch, with all of its questions that are in it.

A row of ``train.jsonl``::

    {"id": "5f1c…", "item_id": "B0…", "image_id": "61…L", "image_path": "3f/3f9ab012.jpg", "question": "What color is the mug?",
     "answer": "red", "category": "easy", "question_type": "color", "product_type": "MUG", "image_group": "0c1e…"}
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler

from data_prep.files import read_jsonl
from data_prep.images.decode import ImageProblem, decode
from data_prep.outcomes import UserError
from data_prep.records import Example
from vqa.models.base import Batch, Processor

MOST_PIXELS = 1 << 28  # what a configuration may let pass as valid is not refused here, short of a gigabyte of memory


def load_dataset_and_metadata(folder: Path) -> tuple[dict[str, list[Example]], dict[str, Any]]:
    """The splits and the statistics that curation wrote.

    Raises:
        UserError: the folder is not a curated dataset.
    """
    missing = [
        name for name in ("train.jsonl", "val.jsonl", "test.jsonl", "stats.json") if not (folder / name).is_file()
    ]
    if missing:
        raise UserError(f"{folder} is no curated dataset: it lacks {', '.join(missing)}. Run the stage curate first.")
    splits = {name: list(read_jsonl(folder / f"{name}.jsonl", Example)) for name in ("train", "val", "test")}
    return splits, json.loads((folder / "stats.json").read_text(encoding="utf-8"))


def locate_image_path(image_root: Path, image_path: str) -> Path:
    """Where an image is on this machine.

    Raises:
        UserError: the path leads out of the image folder, or there is no such file.
    """
    relative = PurePosixPath(image_path)
    path = image_root / relative
    if relative.is_absolute() or ".." in relative.parts or not path.resolve().is_relative_to(image_root.resolve()):
        raise UserError(f"The image {image_path!r} lies outside of {image_root}: it is not opened.")
    if not path.is_file():
        raise UserError(f"There is no image {path}. Is {image_root} the folder that the images belong to?")
    return path


def open_image(image_root: Path, image_path: str) -> Image.Image:
    """The image as the models see it, decoded as it was when it was validated: RGB, upright, transparent parts white.

    Raises:
        UserError: it is not there.
        OSError: it cannot be read; with a number where that is the file system's doing.
        ImageProblem: it does not decode.
    """
    path = locate_image_path(image_root, image_path)
    try:
        return decode(path.read_bytes(), MOST_PIXELS)[0]
    except ImageProblem as problem:
        raise ImageProblem(problem.reason, f"{path}: {problem.detail}") from problem


def needed_image(image_root: Path, image_path: str) -> Image.Image:
    """`open_image` where nothing can go on without it.

    Raises:
        UserError: it is not there, or cannot be read or decoded.
    """
    try:
        return open_image(image_root, image_path)
    except (OSError, ImageProblem) as error:
        raise UserError(
            f"An image of the curated dataset cannot be used any more: {error}. Bring it back as it was when it was "
            f"validated, and start again; or use another --run-dir without it."
        ) from error


class VQADataset(Dataset[Example]):
    """Examples by index. Images are decoded when a batch is put together, once each: see `collator`."""

    def __init__(self, examples: Sequence[Example], image_root: Path) -> None:
        self.examples = list(examples)
        self.image_root = image_root

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    def locate_image_path(self, index: int) -> Path:
        """Where an example's image is; see `locate_image_path`."""
        return locate_image_path(self.image_root, self.examples[index].image_path)

    def collator(self, processor: Processor, *, cache: bool = False) -> Callable[[Sequence[Example]], Batch]:
        """What makes a batch of examples; travels to worker processes. ``cache`` keeps decoded images in memory."""
        return Collator(processor, self.image_root, cache)


class Collator:
    """Groups a batch's examples by image (in the order of their first appearance) and makes tensors of them."""

    def __init__(self, processor: Processor, image_root: Path, cache: bool = False) -> None:
        self.processor, self.image_root = processor, image_root
        self.pictures: dict[str, Image.Image] | None = {} if cache else None

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """A batch with answers; its questions are sorted by image."""
        groups = by_image(examples)
        return self.processor.collate(
            [self._image(path) for path in groups],
            [[e.question for e in group] for group in groups.values()],
            [[e.answer for e in group] for group in groups.values()],
        )

    def _image(self, path: str) -> Image.Image:
        if self.pictures is None:
            return needed_image(self.image_root, path)
        if path not in self.pictures:
            self.pictures[path] = needed_image(self.image_root, path)
        return self.pictures[path]


def by_image(examples: Sequence[Example]) -> dict[str, list[Example]]:
    """Examples grouped by image, images in the order of their first appearance."""
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        groups[example.image_path].append(example)
    return dict(groups)


class ImageOrder(Sampler[int]):
    """Shuffles images and keeps each image's questions (shuffled too) together, so that a batch has few images.

    The order is a function of seed and epoch. Batches are cut by questions: one image can end up in two of them.
    """

    def __init__(self, examples: Sequence[Example], seed: int) -> None:
        rows: dict[str, list[int]] = defaultdict(list)
        for index, example in enumerate(examples):
            rows[example.image_path].append(index)
        self._groups = list(rows.values())
        self._count = len(examples)
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's order; the trainer calls this."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 100_003 + self._epoch)
        for group in torch.randperm(len(self._groups), generator=generator).tolist():
            rows = self._groups[group]
            for row in torch.randperm(len(rows), generator=generator).tolist():
                yield rows[row]


def verify_dataset(splits: dict[str, list[Example]], image_root: Path) -> list[str]:
    """What is wrong with a dataset, in words; empty where nothing is.

    Looks for missing images, empty fields, ids that come twice, and items or images on two sides of a split.
    """
    problems = []
    seen_ids: set[str] = set()
    sides: dict[tuple[str, str], str] = {}
    for name, examples in splits.items():
        if not examples:
            problems.append(f"{name} is empty")
        for path in sorted({example.image_path for example in examples}):
            try:
                locate_image_path(image_root, path)
            except UserError as error:
                problems.append(f"{name}: {error}")
        for example in examples:
            if not example.question.strip() or not example.answer.strip():
                problems.append(f"{name}: {example.id} has no question or no answer")
            if example.id in seen_ids:
                problems.append(f"{name}: the id {example.id} comes twice")
            seen_ids.add(example.id)
            marks = (("item", example.item_id), ("image", example.image_id), ("image group", example.image_group))
            for kind, mark in marks:
                if mark and sides.setdefault((kind, mark), name) != name:
                    problems.append(f"{kind} {mark} is in {sides[kind, mark]} and in {name}")
    return problems
