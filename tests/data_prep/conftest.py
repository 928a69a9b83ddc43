"""Small folders in ABO's layout, made on the spot, and the real sample where it lies beside the project."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import orjson
import pytest
from PIL import Image

from data_prep.images.validate import validate
from data_prep.outcomes import Failed, Ok, Todo
from data_prep.records import Product
from data_prep.settings import ValidateSettings

SAMPLE = Path(os.environ.get("ABO_SAMPLE", Path(__file__).resolve().parents[3] / "shared" / "abo_sample"))


@pytest.fixture(scope="session")
def sample() -> Path:
    """The slice of real ABO."""
    if not (SAMPLE / "expected.json").is_file():
        pytest.skip(f"the real sample is not at {SAMPLE} (set ABO_SAMPLE)")
    return SAMPLE


def listing(item_id: str, /, **fields: Any) -> dict[str, Any]:
    """A listing that qualifies, but for the fields given; None removes one."""
    text = [{"language_tag": "en_US", "value": "mug"}]
    whole = {
        "item_id": item_id,
        "item_name": text,
        "product_type": [{"value": "MUG"}],
        "item_keywords": text,
        "main_image_id": f"image-{item_id}",
        **fields,
    }
    return {key: value for key, value in whole.items() if value is not None}


@pytest.fixture
def catalogue(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder in ABO's layout from listings (or raw lines) and image paths by id."""

    def write(
        listings: list[dict[str, Any] | bytes], paths: dict[str, str] | None = None, name: str = "listings_0.json.gz"
    ) -> Path:
        root = tmp_path / "abo"
        lines = [entry if isinstance(entry, bytes) else orjson.dumps(entry) for entry in listings]
        if paths is None:
            ids = [entry["main_image_id"] for entry in listings if isinstance(entry, dict) and "main_image_id" in entry]
            paths = {i: f"aa/{i}.jpg" for i in ids if isinstance(i, str)}
        for folder in ("listings/metadata", "images/metadata", "images/small"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (root / "listings/metadata" / name).write_bytes(gzip.compress(b"\n".join(lines) + b"\n"))
        rows = ["image_id,height,width,path", *(f"{i},256,256,{path}" for i, path in paths.items())]
        (root / "images/metadata/images.csv.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
        return root

    return write


def jpeg(color: str = "red", size: tuple[int, int] = (64, 64), **options: Any) -> bytes:
    """A JPEG with something on it, so that its halves are not equal."""
    image = Image.new("RGB", size, "white")
    image.paste(Image.new("RGB", (max(1, size[0] // 2), max(1, size[1] // 3)), color), (size[0] // 5, size[1] // 4))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 90, **options})
    return buffer.getvalue()


def validated(products: Iterable[Product], image_root: Path, **options: Any) -> dict[str, Ok | Failed]:
    """What validation records, by item id; once for each product."""
    found: dict[str, Ok | Failed] = {}

    def todo(product: Product) -> Todo[Product]:
        def record(outcome: Ok | Failed, *, durable: bool = False) -> None:
            assert product.item_id not in found
            found[product.item_id] = outcome

        return Todo(product, record)

    validate(map(todo, products), image_root=image_root, settings=ValidateSettings(**options))
    return found
