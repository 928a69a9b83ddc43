"""Decodes and fingerprints every product's main image, so that no questions about broken images are paid for.

What is recorded for one product::

    Ok(ImageFacts(image_id="70a3384411L", image_path="45/4569c20b.jpg", sha256="d76f…", width=256, height=217,
                  format="JPEG", dhash="0c1e3f7e7e3c1800", colors="fefefe…"))
    Failed("image_truncated", "OSError: image file is truncated (11 bytes not processed)")

`data_prep.images.decode` lists the reasons.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from data_prep.images.decode import MOST_PIXELS, ImageProblem, decode
from data_prep.images.dhash import THUMBNAIL, fingerprint
from data_prep.images.locate import ImageLocator, locator
from data_prep.outcomes import Failed, Ok, Todo
from data_prep.records import ImageFacts, Product
from data_prep.settings import ValidateSettings

_DEFAULTS = ValidateSettings()


def validate(todos: Iterator[Todo[Product]], *, image_root: Path, settings: ValidateSettings) -> str:
    """Record, for each product, the facts about its image or the reason why it cannot be used.

    Returns:
        How images were found that were not at their recorded path; "" if all were.
    """
    images = ImageLocator(image_root)
    for todo in todos:
        try:
            facts = image_facts(todo.item, images, settings)
        except ImageProblem as problem:
            # A failing disk or file server may recover; all other reasons lie in the file itself.
            retry = problem.reason == "image_unreadable"
            todo.record(Failed(problem.reason, problem.detail, retry))
        else:
            todo.record(Ok(facts))
    return images.summary()


def image_facts(product: Product, images: ImageLocator, settings: ValidateSettings) -> ImageFacts:
    """Read and decode the image of one product.

    Raises:
        ImageProblem: it cannot be used.
    """
    data = images.read(product.image_path, product.image_id, settings.max_file_bytes)
    image, kind, (width, height) = decode(data, settings.max_pixels, THUMBNAIL, settings.min_side)
    dhash, colors = fingerprint(image)
    digest = hashlib.sha256(data).hexdigest()
    return ImageFacts(product.image_id, product.image_path, digest, width, height, kind, dhash, colors)


def open_image(root: Path, path: str, image_id: str = "") -> Image.Image:
    """An image as models see it: RGB, upright, transparent parts white.

    Raises:
        ImageProblem: the path leaves ``root``, or the file does not decode.
    """
    return decode(locator(root).read(path, image_id, _DEFAULTS.max_file_bytes), MOST_PIXELS)[0]
