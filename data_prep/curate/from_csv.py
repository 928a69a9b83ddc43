"""What curation needs, from a CSV that anybody wrote and a folder of images: no listings, no validation, no generator.

A row, as the published report's notebooks write it; ``qas`` is JSON or a Python literal, and a category is not needed::

    item_id,image_id,qas
    B0ADB4121C,70a3384411L,"[{'question': 'What color is it?', 'answer': 'gray'}]"
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from data_prep.dataset_csv import Row, load_dataset_and_metadata
from data_prep.images.decode import ImageProblem
from data_prep.images.locate import ImageLocator
from data_prep.images.validate import image_facts, image_states
from data_prep.outcomes import UserError
from data_prep.records import ImageFacts, Product, Rejected, Reply
from data_prep.settings import DataSettings, ValidateSettings

_LONGEST_LITERAL = 100_000  # characters; Python's parser takes memory in proportion
_THREADS = min(8, os.cpu_count() or 1)  # Pillow releases Python's global lock while it decodes


@dataclass(frozen=True, slots=True)
class FromCsv:
    """What the stages prepare, validate and generate would have given."""

    products: list[Product]
    facts: dict[str, ImageFacts]  # by item id
    failures: dict[str, str]  # by item id, the reason
    replies: list[Reply]
    located: str  # how images were found that were not at their recorded path


def read_csv(data: DataSettings, settings: ValidateSettings, reject: Callable[[Rejected], None]) -> FromCsv:
    """Read the rows, and find and decode every image.

    Rows about the same item and image are one product with all of their pairs.

    Raises:
        UserError: no file matches, a file is not such a CSV, or there is no image folder.
    """
    files = data.csv_files()
    if not files:
        raise UserError(f"No file matches {data.dataset_csv} (data.dataset_csv).")
    if not data.image_root.is_dir():
        raise UserError(f"There is no image folder {data.image_root}: set data.images to the folder of your images.")
    rows, paths = _load(data)
    pairs: dict[str, list[str]] = {}
    image_of: dict[str, str] = {}
    for row in rows:
        if image_of.setdefault(row.item_id, row.image_id) == row.image_id:
            pairs.setdefault(row.item_id, []).append(row.qas)
        else:
            reject(Rejected(row.item_id, "duplicate_item", f"image {row.image_id}: an earlier row has another image"))
    images = ImageLocator(data.image_root)
    facts: dict[str, ImageFacts] = {}
    failures: dict[str, str] = {}

    def look(entry: tuple[str, str]) -> tuple[Product, ImageFacts | str]:
        item_id, image_id = entry
        path = paths.get(image_id, "")
        product = Product(item_id, image_id, path, name="", product_type="", color="", keywords=[])
        try:
            # Without metadata no path is recorded: it is the one that the id leads to.
            path = path or images.locate("", image_id)
            product = Product(item_id, image_id, path, name="", product_type="", color="", keywords=[])
            return product, image_facts(product, images, settings)
        except ImageProblem as problem:
            return product, problem.reason

    products = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for product, found in pool.map(look, image_of.items()):
            products.append(product)
            if isinstance(found, str):
                failures[product.item_id] = found
            else:
                facts[product.item_id] = found
    replies = [_reply(item_id, image_of[item_id], texts) for item_id, texts in pairs.items()]
    return FromCsv(products, facts, failures, replies, images.summary())


def images_digest(data: DataSettings) -> str:
    """A digest of the states of all images that the rows name, see `data_prep.images.validate.image_states`.

    Raises:
        UserError: a file is not such a CSV.
    """
    rows, paths = _load(data)
    named = sorted({row.image_id for row in rows})
    products = (Product(image, image, paths.get(image, ""), "", "", "", []) for image in named)
    states = image_states(products, ImageLocator(data.image_root))
    text = "\n".join(f"{product.image_id} {state}" for product, state in states)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _load(data: DataSettings) -> tuple[list[Row], dict[str, str]]:
    index = data.root / data.images_index
    return load_dataset_and_metadata(data.csv_files(), index if index.is_file() else None)


def _reply(item_id: str, image_id: str, texts: Sequence[str]) -> Reply:
    """The pairs of one item, in the form that a generator's reply has."""
    lists = [_as_list(text) for text in texts]
    whole = [pair for pairs in lists if pairs is not None for pair in pairs]
    # What is no list goes to the parser as it is: it may find one amid other text, or count it as unparsable.
    text = json.dumps(whole) if whole else texts[0]
    return Reply(item_id, image_id, text, "", model="", input_tokens=0, output_tokens=0, dollars=0.0, generator="csv")


def _as_list(text: str) -> list[object] | None:
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text) if len(text) <= _LONGEST_LITERAL else None
            json.dumps(value)  # a literal may hold what JSON does not know, such as bytes
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        if isinstance(value, list):
            return value
        if isinstance(value, dict):
            return [value]
    return None
