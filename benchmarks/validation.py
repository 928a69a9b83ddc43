"""Validates images, and compares it with only decoding them with Pillow, on the same core.

``python benchmarks/validation.py --out validation.json`` renders a few hundred products (or reads ``--root``, a folder with
ABO's layout) and measures in turns:

- ours: `validate.validate`: path checks, reading, decoding, SHA-256, fingerprints, records;
- floor: ``Image.open(path).load()`` for the same files.

The bar is a ratio of 0.9 or more. Validation can be faster than the floor, since it decodes JPEGs completely but not to full
size.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image

from benchmarks.measure import alternate, compare, report
from data_prep.abo import listings
from data_prep.demo import catalogue
from data_prep.images import validate
from data_prep.outcomes import Failed, Ok, Todo
from data_prep.records import Product
from data_prep.settings import DataSettings, PrepareSettings, ValidateSettings


def main() -> None:
    """Find or make the images, measure, print and write."""
    parser = argparse.ArgumentParser(description="Compare validating images with only decoding them")
    parser.add_argument("--root", type=Path, help="folder with ABO's layout (default: render a catalog)")
    parser.add_argument("--products", type=int, default=300, help="number of products to render")
    parser.add_argument("--limit", type=int, default=3000, help="maximum number of images")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = options.root or Path(temporary)
        if options.root is None:
            catalogue.render(root, products=options.products, seed=1)
        sources = listings.find_sources(DataSettings(root=root))
        products = list(listings.prepare(sources, PrepareSettings(max_items=options.limit), lambda rejected: None))
        outcomes: dict[str, Ok | Failed] = {}

        def record(item_id: str, outcome: Ok | Failed, *, durable: bool = False) -> None:
            outcomes[item_id] = outcome

        def check(items: list[Product]) -> None:
            todos = (Todo(product, partial(record, product.item_id)) for product in items)
            validate.validate(todos, image_root=sources.image_root, settings=ValidateSettings())

        def floor() -> None:
            for product in good:
                with Image.open(sources.image_root / product.image_path) as image:
                    image.load()

        check(products)
        good = [p for p in products if isinstance(outcomes[p.item_id], Ok)]
        times = alternate({"ours": lambda: check(good), "floor": floor}, rounds=options.rounds)
        report(
            "validation",
            {
                "validation": compare(times, "ours", "floor", work=len(good), unit="images"),
                "images": len(good),
                "bar": "at least 0.9 x",
            },
            options.out,
        )


if __name__ == "__main__":
    main()
