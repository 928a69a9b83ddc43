"""Writes a curated dataset as files that people and programs read, and checks a written one for leaks.

::

    train.jsonl, val.jsonl, test.jsonl    one `Example` a line
    images.jsonl                        one `ImageFacts` a product, with its item_id: what `verify` compares
    stats.json                            counts, distributions, the blind floor
    samples.jpg                           images with their questions and answers, to look at
    README.md                             the dataset card
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from data_prep.curate.card import card
from data_prep.curate.sample_sheet import sample_sheet
from data_prep.curate.splits import leaks, read_splits
from data_prep.files import write_atomic, write_json, write_jsonl
from data_prep.images.decode import ImageProblem, read_image_file
from data_prep.outcomes import UserError
from data_prep.records import ImageFacts, from_dict
from data_prep.settings import CurateSettings

if TYPE_CHECKING:
    from data_prep.curate.curate import CuratedDataset


def write_dataset(
    dataset: CuratedDataset, folder: Path, *, image_root: Path, source: str, stand_in: bool = False
) -> None:
    """Write all files; each appears complete or not at all, README.md last.

    Args:
        dataset: what `curate` made.
        folder: made if it is not there.
        image_root: where the sample sheet's images are.
        source: who answered, for the card: "gemini-3.5-flash-lite".
        stand_in: the answers came from the stand-in server, which the card says first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in dataset.splits().items():
        write_jsonl(folder / f"{name}.jsonl", rows)
    write_jsonl(folder / "images.jsonl", _image_lines(dataset))
    write_json(folder / "stats.json", dataset.stats)
    write_atomic(folder / "samples.jpg", sample_sheet(dataset.splits(), image_root))
    text = card(dataset.stats, dataset.settings, source=source, stand_in=stand_in)
    write_atomic(folder / "README.md", text.encode())


def verify(folder: Path) -> list[str]:
    """Look for anything that is on two sides of the split; each leak in words, so an empty list is the proof.

    Near images are searched for afresh in images.jsonl, with the distances that its first line states.

    Raises:
        UserError: the folder holds no dataset.
    """
    try:
        splits = read_splits(folder)
        with (folder / "images.jsonl").open("rb") as lines:
            settings = from_dict(_Near, orjson.loads(next(lines)))
            parsed = (orjson.loads(line) for line in lines)
            pictures = {line["item_id"]: from_dict(ImageFacts, line) for line in parsed}
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no curated dataset: {error.filename} is missing. Run stage curate.") from None
    except (StopIteration, orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{folder}/images.jsonl is damaged ({error}). Run stage curate again.") from error
    missing = {row.item_id for rows in splits.values() for row in rows} - pictures.keys()
    found = [f"item {item} has no line in images.jsonl, so its image was not compared" for item in sorted(missing)]
    near = dataclasses.asdict(settings)
    return found + leaks(splits, pictures, **near)


def export_imagefolder(folder: Path, image_root: Path, out: Path) -> int:
    """Copy a dataset into the form that ``datasets.load_dataset("imagefolder", data_dir=out)`` reads.

    ``out/train/metadata.jsonl`` has one line an image, since that loader knows an image once::

        {"file_name": "3f9ab012.jpg", "item_id": "B0…", "questions": ["What color …?"], "answers": ["red"], …}

    The JSONL files need no export: ``datasets.load_dataset("json", data_files={"train": ".../train.jsonl"})``.

    Returns:
        How many images were copied.

    Raises:
        UserError: an image is no longer there.
    """
    copied = 0
    for split, rows in read_splits(folder).items():
        target = out / {"val": "validation"}.get(split, split)
        target.mkdir(parents=True, exist_ok=True)
        by_image: dict[str, list[Any]] = defaultdict(list)
        for row in rows:
            by_image[row.image_path].append(row)
        lines = []
        for path, examples in by_image.items():
            name = hashlib.sha256(path.encode()).hexdigest()[:16] + Path(path).suffix.lower()
            try:
                read_image_file(image_root, path, max_bytes=1 << 40)
                shutil.copyfile(image_root / path, target / name)
            except (ImageProblem, OSError) as error:
                raise UserError(f"Cannot copy {image_root / path}: {error}.") from error
            copied += 1
            lines.append(
                {
                    "file_name": name,
                    "item_id": examples[0].item_id,
                    "image_id": examples[0].image_id,
                    "product_type": examples[0].product_type,
                    "questions": [e.question for e in examples],
                    "answers": [e.answer for e in examples],
                    "categories": [e.category for e in examples],
                    "question_types": [e.question_type for e in examples],
                }
            )
        write_jsonl(target / "metadata.jsonl", lines)
    return copied


@dataclasses.dataclass(frozen=True, slots=True)
class _Near:
    """First line of images.jsonl: how near two images had to be for one group."""

    dhash_bits: int
    color_distance: float


def _image_lines(dataset: CuratedDataset) -> Iterator[dict[str, Any]]:
    settings: CurateSettings = dataset.settings
    yield {"dhash_bits": settings.dhash_bits, "color_distance": settings.color_distance}
    for item_id, facts in dataset.pictures.items():
        yield {"item_id": item_id, **dataclasses.asdict(facts)}
