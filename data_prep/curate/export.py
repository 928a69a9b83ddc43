"""A curated dataset in the forms in which datasets are shared. Each holds every question; an image is stored once in each.

::

    data/train-00000-of-00002.parquet     a question a row, with its image: `datasets.load_dataset` reads these
    jsonl/train.jsonl                     the same rows without images
    webdataset/train-00000.tar            an image a sample: 0000017.jpg, and 0000017.json with all of its questions
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from data_prep.files import dumps
from data_prep.images.decode import ImageProblem
from data_prep.images.locate import locator
from data_prep.outcomes import UserError
from data_prep.records import Example, Opinions, by_image

SPLIT_NAMES = {"train": "train", "val": "validation", "test": "test"}  # ours → those of the hub
IMAGES_PER_FILE = 5_000  # of a Parquet file or a tar
IMAGES_PER_ROW_GROUP = 100  # what a reader loads at once
_OPINIONS = {"second_opinion": "seen", "blind": "blind", "listing": "witness"}  # column → field of `Opinions`


class ImageReader:
    """Reads the images that the questions were asked about, and no others.

    Args:
        image_root: folder of the images.
        max_bytes: a larger file is refused.
    """

    def __init__(self, image_root: Path, max_bytes: int) -> None:
        self._root, self._max_bytes = image_root, max_bytes

    def __call__(self, example: Example) -> bytes:
        """The bytes of an example's image, as they are in its file.

        Raises:
            UserError: it is missing, unreadable, or another file than the questions were asked about.
        """
        try:
            data = locator(self._root).read(example.image_path, example.image_id, self._max_bytes)
        except ImageProblem as problem:
            raise UserError(f"The image of {example.item_id} cannot be exported: {problem}. Restore it.") from problem
        if example.image_sha256 and hashlib.sha256(data).hexdigest() != example.image_sha256:
            raise UserError(
                f"{example.image_path} is not the file that the questions about {example.item_id} were asked about. "
                "Restore that file, or launch all stages again."
            )
        return data


def export_split(
    name: str,
    rows: Sequence[Example],
    opinions: Mapping[str, Opinions] | None,
    read: Callable[[Example], bytes],
    folder: Path,
    progress: Callable[[int], None],
) -> None:
    """Write one split in all forms. An image is in memory together with at most a row group of others.

    Args:
        name: as the hub calls it.
        rows: its questions.
        opinions: by question id; None where no second opinion was asked for.
        read: gives the bytes of an example's image.
        folder: takes data/, jsonl/ and webdataset/.
        progress: is told how many images were written.

    Raises:
        UserError: an image cannot be had.
        OSError: the disk is full.
    """
    for sub in ("data", "jsonl", "webdataset"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    groups = list(by_image(rows).values())
    files = max(1, -(-len(groups) // IMAGES_PER_FILE))
    number = 0
    columns = [field.name for field in dataclasses.fields(Example)] + list(_OPINIONS if opinions is not None else ())
    with (folder / "jsonl" / f"{name}.jsonl").open("wb") as lines:
        for index in range(files):
            part = groups[index * IMAGES_PER_FILE : (index + 1) * IMAGES_PER_FILE]
            path = folder / "data" / f"{name}-{index:05d}-of-{files:05d}.parquet"
            with (
                _ParquetFile(path, columns) as table,
                tarfile.open(folder / f"webdataset/{name}-{index:05d}.tar", "w") as tar,
            ):
                for start in range(0, len(part), IMAGES_PER_ROW_GROUP):
                    some = part[start : start + IMAGES_PER_ROW_GROUP]
                    images = [read(group[0]) for group in some]
                    values = [[_fields(row, opinions) for row in group] for group in some]
                    table.write(images, values)
                    for image, group in zip(images, values, strict=True):
                        _add_sample(tar, f"{number:07d}", image, group)
                        lines.writelines(dumps(row) for row in group)
                        number += 1
                    progress(len(some))


def _fields(row: Example, opinions: Mapping[str, Opinions] | None) -> dict[str, str]:
    fields = dataclasses.asdict(row)
    if opinions is not None:
        opinion = opinions.get(row.id, Opinions())
        fields |= {column: getattr(opinion, field) for column, field in _OPINIONS.items()}
    return fields


class _ParquetFile:
    """A Parquet file with the hub's image column. A row group's equal images are stored once, in its dictionary."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        import pyarrow
        from pyarrow import parquet

        self._arrow = pyarrow
        self._image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        features = {"image": {"_type": "Image"}} | {name: {"dtype": "string", "_type": "Value"} for name in columns}
        self._schema = pyarrow.schema(
            [("image", self._image), *((name, pyarrow.string()) for name in columns)],
            metadata={"huggingface": json.dumps({"info": {"features": features}})},
        )
        self._writer = parquet.ParquetWriter(path, self._schema, compression="zstd", dictionary_pagesize_limit=2**30)

    def __enter__(self) -> _ParquetFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def write(self, images: Sequence[bytes], values: Sequence[Sequence[dict[str, str]]]) -> None:
        """Add one row group: the questions about some images."""
        pairs = [(image, row) for image, group in zip(images, values, strict=True) for row in group]
        column = [{"bytes": image, "path": Path(row["image_path"]).name} for image, row in pairs]
        columns = [self._arrow.array(column, self._image)]
        columns += [self._arrow.array([row[name] for _, row in pairs]) for name in self._schema.names[1:]]
        self._writer.write_table(self._arrow.table(columns, schema=self._schema), row_group_size=len(pairs))


def _add_sample(tar: tarfile.TarFile, key: str, image: bytes, group: Sequence[dict[str, str]]) -> None:
    with Image.open(io.BytesIO(image)) as opened:
        kind = (opened.format or "bin").lower().replace("jpeg", "jpg")
    shared = {name: group[0][name] for name in ("item_id", "image_id", "image_path", "product_type", "image_sha256")}
    questions = [{name: value for name, value in row.items() if name not in shared} for row in group]
    for suffix, data in ((kind, image), ("json", dumps({**shared, "questions": questions}))):
        member = tarfile.TarInfo(f"{key}.{suffix}")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
