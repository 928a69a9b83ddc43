"""The curated splits as batches in which each image is decoded once, for all of its questions.

A row of ``train.jsonl``::

    {"id": "5f1c…", "item_id": "B0…", "image_id": "61…L", "image_path": "3f/3f9ab012.jpg", "question": "What color is the mug?",
     "answer": "red", "category": "easy", "question_type": "color", "product_type": "MUG", "image_group": "0c1e…"}
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler

from data_prep.files import read_jsonl
from data_prep.images.decode import ImageProblem, decode
from data_prep.images.locate import locator
from data_prep.outcomes import UserError
from data_prep.records import Example
from vqa.models.base import Batch, Processor

# 268 megapixels, about 1 GB decoded. Validation has its own, configurable limit; this one only guards the memory.
MOST_PIXELS = 1 << 28
IMAGES_CHECKED = 500  # per split, by `verify_dataset`: a second or two on a network file system


def load_dataset_and_metadata(folder: Path) -> tuple[dict[str, list[Example]], dict[str, Any]]:
    """The splits and the statistics that the stage curate wrote.

    Raises:
        UserError: the folder is not a curated dataset.
    """
    missing = [
        name for name in ("train.jsonl", "val.jsonl", "test.jsonl", "stats.json") if not (folder / name).is_file()
    ]
    if missing:
        raise UserError(
            f"{folder} is not a curated dataset: it lacks {', '.join(missing)}. Run the stage curate first."
        )
    splits = {name: list(read_jsonl(folder / f"{name}.jsonl", Example)) for name in ("train", "val", "test")}
    return splits, json.loads((folder / "stats.json").read_text(encoding="utf-8"))


def locate_image_path(image_root: Path, image_path: str, image_id: str = "") -> Path:
    """The path of an image on this machine, found by the strategies of `data_prep.images.locate`.

    Raises:
        UserError: the path leaves the image folder, there is no such file, or two files could be meant.
    """
    try:
        return image_root / locator(image_root).locate(image_path, image_id)
    except ImageProblem as problem:
        raise UserError(_not_located(problem, image_root, image_path or image_id)) from None


def _not_located(problem: ImageProblem, image_root: Path, image: str) -> str:
    if problem.reason == "image_file_missing":
        return f"There is no image {image_root / image}. Is {image_root} the right image folder?"
    if problem.reason == "image_ambiguous":
        return f"Two files below {image_root} could be meant: {problem.detail}."
    return f"The image {image!r} is not opened: it must lie inside {image_root} ({problem})."


def open_image(image_root: Path, image_path: str, image_id: str = "") -> Image.Image:
    """The image as the models see it, decoded like in validation: RGB, upright, transparent parts white.

    Raises:
        UserError: there is no such image.
        OSError: the file cannot be read.
        ImageProblem: the file cannot be decoded.
    """
    path = locate_image_path(image_root, image_path, image_id)
    try:
        return decode(path.read_bytes(), MOST_PIXELS)[0]
    except ImageProblem as problem:
        raise ImageProblem(problem.reason, f"{path}: {problem.detail}") from problem


def needed_image(image_root: Path, image_path: str, image_id: str = "") -> Image.Image:
    """`open_image` for training, which cannot go on without it.

    Raises:
        UserError: the image is missing, unreadable or cannot be decoded.
    """
    try:
        return open_image(image_root, image_path, image_id)
    except (OSError, ImageProblem) as error:
        raise UserError(
            f"An image of the curated dataset can no longer be used: {error}. Restore the file that was validated and start "
            f"again, or use a new --run-dir without it."
        ) from error


class VQADataset(Dataset[Example]):
    """Examples by index. Images are decoded when a batch is collated, once each: see `collator`."""

    def __init__(self, examples: Sequence[Example], image_root: Path) -> None:
        self.examples = list(examples)
        self.image_root = image_root

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    def locate_image_path(self, index: int) -> Path:
        """The path of an example's image; see `locate_image_path`."""
        return locate_image_path(self.image_root, self.examples[index].image_path)

    def collator(self, processor: Processor, *, cache: bool = False) -> Callable[[Sequence[Example]], Batch]:
        """The function that makes a batch of examples; it can be pickled. ``cache`` keeps decoded images in memory."""
        return Collator(processor, self.image_root, cache)


class Collator:
    """Groups a batch's examples by image, in order of first appearance, and turns them into tensors."""

    def __init__(self, processor: Processor, image_root: Path, cache: bool = False) -> None:
        self.processor, self.image_root = processor, image_root
        self.decoded: dict[str, Image.Image] | None = {} if cache else None  # by path

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """A batch with answers; its questions are in order of their images."""
        groups = by_image(examples)
        return self.processor.collate(
            [self._image(path) for path in groups],
            [[e.question for e in group] for group in groups.values()],
            [[e.answer for e in group] for group in groups.values()],
        )

    def _image(self, path: str) -> Image.Image:
        if self.decoded is None:
            return needed_image(self.image_root, path)
        if path not in self.decoded:
            self.decoded[path] = needed_image(self.image_root, path)
        return self.decoded[path]


def by_image(examples: Sequence[Example]) -> dict[str, list[Example]]:
    """Examples grouped by image, images in order of first appearance."""
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        groups[example.image_path].append(example)
    return dict(groups)


class ImageOrder(Sampler[int]):
    """Shuffles the images and, within each image, its questions, which stay together: a batch then has few images.

    The order is a function of seed and epoch. Batches are cut by questions, so an image can be in two of them.
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
        """Set the epoch whose order comes next; the trainer calls this."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        # A prime above any number of epochs, so that no epoch of one seed has the order of another seed's.
        generator = torch.Generator().manual_seed(self._seed * 100_003 + self._epoch)
        for group in torch.randperm(len(self._groups), generator=generator).tolist():
            rows = self._groups[group]
            for row in torch.randperm(len(rows), generator=generator).tolist():
                yield rows[row]


def verify_dataset(splits: dict[str, list[Example]], image_root: Path) -> list[str]:
    """Look for empty splits and fields, duplicate ids, missing images, and items or images in two splits.

    Of the images a sample spread over each split is looked up, but not decoded.

    Returns:
        A sentence per problem.
    """
    problems = []
    seen_ids: set[str] = set()
    sides: dict[tuple[str, str], str] = {}
    for name, examples in splits.items():
        if not examples:
            problems.append(f"{name} is empty")
        paths = sorted({example.image_path for example in examples})
        for path in paths[:: -(-len(paths) // IMAGES_CHECKED) or 1]:
            try:
                locate_image_path(image_root, path)
            except UserError as error:
                problems.append(f"{name}: {error}")
        for example in examples:
            if not example.question.strip() or not example.answer.strip():
                problems.append(f"{name}: {example.id} has no question or no answer")
            if example.id in seen_ids:
                problems.append(f"{name}: duplicate id {example.id}")
            seen_ids.add(example.id)
            marks = (("item", example.item_id), ("image", example.image_id), ("image group", example.image_group))
            for kind, mark in marks:
                if mark and sides.setdefault((kind, mark), name) != name:
                    problems.append(f"{kind} {mark} is in both {sides[kind, mark]} and {name}")
    return problems
