"""What the user decides about data: where it lies, which products are taken, what counts as readable, how it is split.

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


class DataSettings(BaseModel):
    """Where the listings and the images are. Paths that are not absolute are relative to ``root``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: Path
    """The folder that holds ``listings/`` and ``images/``."""

    listings: str = "listings/metadata/listings_*.json.gz"
    """Glob of files with one listing a line (``.json``, ``.jsonl``, gzipped or not), or one ``.json`` list of listings."""

    images_index: str = "images/metadata/images.csv.gz"
    """CSV with the columns image_id and path (gzipped or not), or a ``.json`` mapping from image id to path."""

    images: str = "images/small"
    """The folder that the paths of the index start from: ``images/small`` (256 px) or ``images/original``."""

    @field_validator("root")
    @classmethod
    def _absolute(cls, root: Path) -> Path:
        return root.expanduser().absolute()  # tasks may start in another folder

    @property
    def image_root(self) -> Path:
        """The image folder as a path; no image outside it is ever opened."""
        return self.root / self.images


class PrepareSettings(BaseModel):
    """Which of the usable listings are taken. The choice is stable: it depends on ``seed`` and the item's id only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_items: int | None = Field(default=None, ge=1)
    """At most this many products; the same products stay chosen when others are added, as far as the number allows."""

    max_per_product_type: int | None = Field(default=None, ge=1)
    """At most this many of one product type, since phone cases crowd everything else out. Applied before ``max_items``."""

    seed: int = 0
    """Another seed is another choice."""

    max_line_bytes: int = Field(default=8 * 2**20, ge=1024)
    """A longer line is rejected unread (ABO's longest has some 100 kB), so that memory stays bounded."""


class ValidateSettings(BaseModel):
    """When an image is good enough to ask about, and how the work is cut."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_side: int = Field(default=16, ge=1)
    """Pixels. An image whose shorter side is below this is rejected as too small."""

    max_pixels: int = Field(default=64_000_000, ge=1)
    """An image with more pixels is rejected from its header, undecoded: decoding would take 3 bytes a pixel."""

    max_file_bytes: int = Field(default=64 * 2**20, ge=1)
    """A larger file is rejected unread."""

    shards: int = Field(default=1, ge=1, le=100_000)
    """Tasks that the work is divided over."""


class CurateSettings(BaseModel):
    """Which question/answer pairs are kept, how they are normalized, and how products are divided."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    missing_category: Literal["drop", "keep"] = "drop"
    """``keep`` lets pairs without easy, medium or hard in, with an empty category: older replies have none."""

    spelling: dict[str, str] = Field(default_factory=dict)
    """Answers to respell after lower-casing, such as ``{grey: gray}``. Nothing is respelt unless it is written here."""

    similar_questions: float = Field(default=0.8, gt=0, le=1)
    """Two questions about one product that share at least this part of their content words ask the same thing."""

    dhash_bits: int = Field(default=3, ge=0, le=10)
    """Images whose 64-bit difference hashes differ in at most this many bits, and whose colors agree, are one image."""

    color_distance: float = Field(default=2.0, ge=0, le=255)
    """Mean difference (of 255) of two 4 x 4 color thumbnails up to which colors agree."""

    same_image: Literal["drop", "group"] = "drop"
    """``drop`` keeps one product of a group of equal images; ``group`` keeps all, on one side of the split."""

    val_share: float = Field(default=0.1, gt=0, lt=1)
    test_share: float = Field(default=0.2, gt=0, lt=1)
    """Parts of the products that are held out; the rest is for training."""

    seed: int = 0
    """Another seed is another split."""

    @field_validator("spelling")
    @classmethod
    def _spelling_is_of_single_words(cls, spelling: dict[str, str]) -> dict[str, str]:
        for old, new in spelling.items():
            if not (old.isalpha() and new.isalpha() and old.islower() and new.islower()):
                raise ValueError(f"write single lower-case words, such as {{grey: gray}}, not {{{old}: {new}}}")
            if new in spelling:
                raise ValueError(f"{old} becomes {new}, which is itself respelt: give the final spelling")
        return spelling

    @model_validator(mode="after")
    def _something_is_left_to_train_on(self) -> CurateSettings:
        if self.val_share + self.test_share >= 1:
            raise ValueError("val_share and test_share leave nothing to train on: their sum must be below 1")
        return self
