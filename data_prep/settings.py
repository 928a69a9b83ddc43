"""Settings of the data: where it is, which products to take, which images to accept, how to curate and split.

::

    data: {root: $ABO_ROOT}
    prepare: {max_items: 5000, max_per_product_type: 300, seed: 7}
    validate: {min_side: 32, shards: 4}
    curate: {missing_category: keep, spelling: {grey: gray}}
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from data_prep.images.decode import MOST_PIXELS


class DataSettings(BaseModel):
    """Where the listings and images are. Relative paths start at ``root``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: Path
    """The folder that contains ``listings/`` and ``images/``."""

    listings: str = "listings/metadata/listings_*.json.gz"
    """Glob pattern of files with one listing per line (``.json`` or ``.jsonl``, optionally gzipped), or one JSON list."""

    images_index: str = "images/metadata/images.csv.gz"
    """CSV file with the columns image_id and path (optionally gzipped), or a ``.json`` object from image id to path."""

    images: str = "images/small"
    """The folder that the paths in the index start from: ``images/small`` (256 px) or ``images/original``."""

    dataset_csv: Path | None = None
    """A CSV with the columns item_id, image_id and qas, or a glob pattern of several: the run then starts with curate, and needs
    neither listings nor a generator. Like ``images`` and ``root``, it then starts at the current folder if it is relative."""

    @field_validator("root", "dataset_csv")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return path.expanduser().absolute() if path else None  # tasks may start in another working directory

    def csv_files(self) -> list[Path]:
        """The files that ``dataset_csv`` names, dataset_2 before dataset_10."""
        if self.dataset_csv is None:
            return []
        found = self.dataset_csv.parent.glob(self.dataset_csv.name)
        return sorted(found, key=lambda path: (len(path.name), path.name))

    @property
    def image_root(self) -> Path:
        """The image folder; no image outside it is ever opened."""
        return self.root / self.images


class PrepareSettings(BaseModel):
    """Which of the usable products to take. The choice is stable: it depends only on ``seed`` and the item ids."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_items: int | None = Field(default=None, ge=1)
    """Maximum number of products. A product that is added later replaces at most one of those chosen before."""

    max_per_product_type: int | None = Field(default=None, ge=1)
    """Maximum number of products of one type; phone cases would crowd out the rest. Applied before ``max_items``."""

    seed: int = 0
    """Another seed gives another choice."""

    max_line_bytes: int = Field(default=8 * 2**20, ge=1024)
    """A longer line is rejected unread, to bound the memory. ABO's longest line has some 100 kB."""


class ValidateSettings(BaseModel):
    """Which images are good enough to ask about, and how the work is divided."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_side: int = Field(default=16, ge=1)
    """An image whose shorter side has fewer pixels is rejected."""

    max_pixels: int = Field(default=64_000_000, ge=1, le=MOST_PIXELS)
    """An image with more pixels is rejected by its header. Decoding takes 3 bytes of memory per pixel. At most 268,435,456,
    which training, evaluation and predict accept."""

    max_file_bytes: int = Field(default=64 * 2**20, ge=1)
    """A larger file is rejected unread."""

    shards: int = Field(default=1, ge=1, le=100_000)
    """Number of tasks that share the work."""


class CurateSettings(BaseModel):
    """Which question/answer pairs to keep, how to normalize them, and how to split the products."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    missing_category: Literal["drop", "keep"] = "drop"
    """``keep`` accepts pairs that are not marked easy, medium or hard, and leaves their category empty."""

    spelling: dict[str, str] = Field(default_factory=dict)
    """Answers to respell after lower-casing, such as ``{grey: gray}``. All others keep their spelling."""

    similar_questions: float = Field(default=0.8, gt=0, le=1)
    """Two questions about one product are duplicates if they share at least this part of their content words."""

    dhash_bits: int = Field(default=2, ge=0, le=10)
    """Two images are nearly equal if their 64-bit difference hashes differ in at most this many bits and their colors agree."""

    color_distance: float = Field(default=2.0, ge=0, le=255)
    """Colors agree if the 4 x 4 color thumbnails differ by at most this much (of 255) on average."""

    same_image: Literal["drop", "keep"] = "drop"
    """Products that show the same image: ``drop`` keeps one of them; ``keep`` keeps all that are in the same split.
    Intervals resample products, so with ``keep`` they are a little too narrow."""

    val_share: float = Field(default=0.1, gt=0, lt=1)
    test_share: float = Field(default=0.2, gt=0, lt=1)
    """Shares of the images for validation and test, in expectation; the rest is for training."""

    seed: int = 0
    """An image's split is a hash of the seed and the image id: everybody with the same seed and shares has the same splits."""

    @field_validator("spelling")
    @classmethod
    def _spelling_is_of_single_words(cls, spelling: dict[str, str]) -> dict[str, str]:
        for old, new in spelling.items():
            if not (old.isalpha() and new.isalpha() and old.islower() and new.islower()):
                raise ValueError(f"expected single lower-case words, such as {{grey: gray}}, not {{{old}: {new}}}")
            if new in spelling:
                raise ValueError(f"{old} becomes {new}, which is itself respelled: give the final spelling")
        return spelling

    @model_validator(mode="after")
    def _something_is_left_to_train_on(self) -> CurateSettings:
        if self.val_share + self.test_share >= 1:
            raise ValueError("the sum of val_share and test_share must be below 1, or nothing is left to train on")
        return self
