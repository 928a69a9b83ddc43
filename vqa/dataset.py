"""The curated splits as batches in which each image is decoded once, for all of its questions.

A row of ``train.jsonl``::

    {"id": "5f1c…", "item_id": "B0…", "image_id": "61…L", "image_path": "3f/3f9ab012.jpg", "question": "What color is the mug?",
     "answer": "red", "category": "easy", "question_type": "color", "product_type": "MUG"}
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler

from data_prep.files import read_jsonl
from data_prep.images.decode import MOST_PIXELS, ImageProblem, decode
from data_prep.images.locate import locator
from data_prep.outcomes import UserError
from data_prep.records import Example, by_image
from vqa.models.base import Batch, Processor

IMAGES_CHECKED = 500  # per split, by `verify_dataset`: a second or two on a network file system
SAMPLES_CHECKED = 8  # training samples that it makes

T = TypeVar("T")


def load_splits(folder: Path) -> dict[str, list[Example]]:
    """The splits that the stage curate wrote: train, val, test.

    Raises:
        UserError: the folder is not a curated dataset.
    """
    files = {name: folder / f"{name}.jsonl" for name in ("train", "val", "test")}
    if missing := [file.name for file in files.values() if not file.is_file()]:
        raise UserError(
            f"{folder} is not a curated dataset: it lacks {', '.join(missing)}. Run the stage curate first."
        )
    return {name: list(read_jsonl(file, Example)) for name, file in files.items()}


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


def open_image(image_root: Path, image_path: str, image_id: str = "", sha256: str = "") -> Image.Image:
    """The image as the models see it, decoded like in validation: RGB, upright, transparent parts white.

    Args:
        image_root, image_path, image_id: as for `locate_image_path`.
        sha256: of the file that was asked about; "" where that is not known.

    Raises:
        UserError: there is no such image.
        OSError: the file cannot be read.
        ImageProblem: the file cannot be decoded, or is another one.
    """
    path = locate_image_path(image_root, image_path, image_id)
    data = path.read_bytes()
    if sha256 and hashlib.sha256(data).hexdigest() != sha256:
        raise ImageProblem("image_changed", f"{path} is not the file that the questions were asked about")
    try:
        return decode(data, MOST_PIXELS)[0]
    except ImageProblem as problem:
        raise ImageProblem(problem.reason, f"{path}: {problem.detail}") from problem


def needed_image(image_root: Path, example: Example) -> Image.Image:
    """An example's image for training, which cannot go on without it.

    Raises:
        UserError: the image is missing, unreadable, cannot be decoded or was changed.
    """
    try:
        return open_image(image_root, example.image_path, example.image_id, example.image_sha256)
    except (OSError, ImageProblem) as error:
        raise UserError(
            f"An image of the curated dataset can no longer be used: {error}. Restore the file that was validated, or "
            f"launch all stages again: what changed is looked at and asked about anew."
        ) from error


class VQADataset(Dataset[Batch]):
    """Samples ready for the model: image decoded and preprocessed, question tokenized, labels prepared.

    ``dataset[3]`` is one sample, a batch of one. A `DataLoader` asks for whole batches by `__getitems__`, which groups the
    examples by image: an image is decoded once, and the network encodes it once, for all of its questions in the batch. Pair it
    with `as_batch` as ``collate_fn``.

    Args:
        examples: questions with their answers.
        image_root: folder of the images.
        processor: the model's; it decides sizes, tokens and labels.
        cache: keep decoded images in memory.
    """

    def __init__(
        self, examples: Sequence[Example], image_root: Path, processor: Processor, *, cache: bool = False
    ) -> None:
        self.examples = list(examples)
        self.image_root, self.processor = image_root, processor
        self._decoded: dict[str, Image.Image] | None = {} if cache else None  # by path

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A batch. Its questions are in order of their images, and images in order of first appearance."""
        groups = by_image([self.examples[index] for index in indices])
        return self.processor.collate(
            [self._image(group[0]) for group in groups.values()],
            [[e.question for e in group] for group in groups.values()],
            [[e.answer for e in group] for group in groups.values()],
        )

    def locate_image_path(self, index: int) -> Path:
        """The path of an example's image; see `locate_image_path`."""
        return locate_image_path(self.image_root, self.examples[index].image_path, self.examples[index].image_id)

    def _image(self, example: Example) -> Image.Image:
        if self._decoded is None:
            return needed_image(self.image_root, example)
        if example.image_path not in self._decoded:
            self._decoded[example.image_path] = needed_image(self.image_root, example)
        return self._decoded[example.image_path]


def as_batch(batch: Any) -> Any:
    """The ``collate_fn`` for a `VQADataset`, whose `__getitems__` has made the batch already."""
    return batch


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


@dataclass(frozen=True, slots=True)
class DatasetCheck:
    """What `verify_dataset` looked at, a line each, and a sentence per problem."""

    lines: list[str]
    problems: list[str]


def verify_dataset(splits: dict[str, list[Example]], image_root: Path, processor: Processor) -> DatasetCheck:
    """Check a dataset before hours of training on it.

    Looks for empty splits and fields, duplicate ids, missing images, and items or images in two splits. A few training samples
    are made as training makes them: their labels must decode back to the answers. Of the images a sample spread over each split
    is looked up, but not decoded.
    """
    lines, problems = [], []
    seen_ids: set[str] = set()
    sides: dict[tuple[str, str], str] = {}
    for name, examples in splits.items():
        if not examples:
            problems.append(f"{name} is empty")
        asked = {example.image_path: example.image_id for example in examples}
        some = _spread(sorted(asked), IMAGES_CHECKED)
        lost = []
        for path in some:
            try:
                locate_image_path(image_root, path, asked[path])
            except UserError as error:
                lost.append(f"{name}: {error}")
        problems += lost
        found = f"{len(some) - len(lost):,} of {len(some):,} images found"
        lines.append(f"{name}: {len(examples):,} questions about {len(asked):,} images; {found}")
        for example in examples:
            if not example.question.strip() or not example.answer.strip():
                problems.append(f"{name}: {example.id} has no question or no answer")
            if example.id in seen_ids:
                problems.append(f"{name}: duplicate id {example.id}")
            seen_ids.add(example.id)
            marks = (("item", example.item_id), ("image", example.image_id))
            for kind, mark in marks:
                if mark and sides.setdefault((kind, mark), name) != name:
                    problems.append(f"{kind} {mark} is in both {sides[kind, mark]} and {name}")
    if located := locator(image_root).summary():
        lines.append(located)
    if not problems:
        _check_samples(VQADataset(_spread(splits["train"], SAMPLES_CHECKED), image_root, processor), lines, problems)
    return DatasetCheck(lines, problems)


def _check_samples(dataset: VQADataset, lines: list[str], problems: list[str]) -> None:
    """Make each sample, and decode its labels."""
    shapes: dict[str, str] = {}
    for index, example in enumerate(dataset.examples):
        try:
            sample = dataset[index]
        except UserError as error:
            problems.append(f"{example.id} cannot be processed: {error}")
            continue
        shapes = shapes or {name: " x ".join(map(str, tensor.shape)) for name, tensor in sample.items()}
        decoded = dataset.processor.decode_labels(sample["labels"])[0]
        if decoded.replace(" ", "") != example.answer.lower().replace(" ", ""):
            problems.append(f"{example.id}: its labels decode to {decoded!r}, not to the answer {example.answer!r}")
    right = len(dataset) - len(problems)
    told = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    lines.append(f"{len(dataset)} samples processed ({told}); labels decode back to the answer in {right}")


def _spread(rows: Sequence[T], count: int) -> Sequence[T]:
    """At most ``count`` rows, evenly spread."""
    return rows[:: -(-len(rows) // count) or 1]
