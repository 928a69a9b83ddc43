"""A curated dataset: in memory, as files that people and programs read, and the check that its splits do not overlap.

::

    train.jsonl, val.jsonl, test.jsonl    one `Example` a line
    images.jsonl                          one `ImageFacts` a product, with its item_id: what `verify` compares
    teacher.json                          `Teacher`: who answered, and under which terms
    stats.json                            counts, distributions, the blind floor: `DatasetStats`
    samples.jpg                           images with their questions and answers, to look at
    README.md                             the dataset card
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from data_prep.curate.card import card
from data_prep.curate.sample_sheet import sample_sheet
from data_prep.curate.splits import leaks, read_splits
from data_prep.curate.stats import DatasetStats
from data_prep.files import write_atomic, write_json, write_jsonl
from data_prep.outcomes import UserError
from data_prep.records import TEACHER_FILE, Example, ImageFacts, Teacher, from_dict
from data_prep.settings import CurateSettings


@dataclass(frozen=True, slots=True)
class CuratedDataset:
    """What curation made."""

    splits: dict[str, list[Example]]  # train, val, test
    images: dict[str, ImageFacts]  # by item id, of the products that were kept
    stats: DatasetStats
    settings: CurateSettings  # the rules it was made by


def write_dataset(dataset: CuratedDataset, folder: Path, *, image_root: Path, teacher: Teacher) -> None:
    """Write all files; each appears complete or not at all, README.md last.

    Args:
        dataset: what `curate` made.
        folder: made if it is not there.
        image_root: where the sample sheet's images are.
        teacher: who answered, for the cards of the dataset and of models that are trained on it.
    """
    for name, rows in dataset.splits.items():
        write_jsonl(folder / f"{name}.jsonl", rows)
    write_jsonl(folder / "images.jsonl", _image_lines(dataset))
    write_json(folder / "stats.json", dataset.stats)
    write_atomic(folder / "samples.jpg", sample_sheet(dataset.splits, image_root))
    write_json(folder / TEACHER_FILE, teacher)
    text = card(dataset.stats, dataset.settings, teacher)
    write_atomic(folder / "README.md", text.encode())


def verify(folder: Path) -> list[str]:
    """Describe everything that is in more than one split; an empty list means that the splits do not overlap.

    Near images are searched for afresh in images.jsonl, with the distances that its first line states.

    Raises:
        UserError: the folder holds no dataset.
    """
    try:
        splits = read_splits(folder)
        with (folder / "images.jsonl").open("rb") as lines:
            near = from_dict(_Near, orjson.loads(next(lines)))
            parsed = (orjson.loads(line) for line in lines)
            images = {line["item_id"]: from_dict(ImageFacts, line) for line in parsed}
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no curated dataset: {error.filename} is missing. Run stage curate.") from None
    except (StopIteration, orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{folder}/images.jsonl is damaged ({error}). Run stage curate again.") from error
    missing = {row.item_id for rows in splits.values() for row in rows} - images.keys()
    found = [f"item {item} has no line in images.jsonl, so its image was not compared" for item in sorted(missing)]
    return found + leaks(splits, images, dhash_bits=near.dhash_bits, color_distance=near.color_distance)


@dataclass(frozen=True, slots=True)
class _Near:
    """First line of images.jsonl: how near two images had to be for one to be dropped."""

    dhash_bits: int
    color_distance: float


def _image_lines(dataset: CuratedDataset) -> Iterator[object]:
    yield _Near(dataset.settings.dhash_bits, dataset.settings.color_distance)
    for item_id, facts in dataset.images.items():
        yield {"item_id": item_id, **dataclasses.asdict(facts)}
