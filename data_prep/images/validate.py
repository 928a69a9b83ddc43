"""Decodes and fingerprints every product's main image, so that no questions about broken images are paid for.

What is recorded for one product::

    Ok(ImageFacts(image_id="70a3384411L", image_path="45/4569c20b.jpg", sha256="d76f…", width=256, height=217,
                  format="JPEG", dhash="0c1e3f7e7e3c1800", colors="fefefe…"))
    Failed("image_truncated", "OSError: image file is truncated (11 bytes not processed)")

`data_prep.images.decode` lists the reasons.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from data_prep.images.decode import MOST_PIXELS, ImageProblem, decode
from data_prep.images.dhash import THUMBNAIL, fingerprint
from data_prep.images.locate import ImageLocator, locator
from data_prep.outcomes import Failed, Ok, Todo
from data_prep.records import ImageFacts, Product
from data_prep.settings import ValidateSettings

_DEFAULTS = ValidateSettings()
_THREADS, _LOOKED_UP_AT_ONCE = 16, 64  # a network file system answers one question in a millisecond, but many at a time


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


def image_states(products: Iterable[Product], images: ImageLocator) -> Iterator[tuple[Product, str]]:
    """Products, each with what tells whether its image file is the one that was looked at: size and time of last change.

    Nothing is read, as in git's index: a file whose state is another is looked at again, and may turn out to be the same.
    """
    ordered = iter(products)
    with ThreadPoolExecutor(_THREADS) as pool:
        waiting: deque[Future[list[tuple[Product, str]]]] = deque()
        while some := list(itertools.islice(ordered, _LOOKED_UP_AT_ONCE)):
            waiting.append(pool.submit(_states, some, images))
            if len(waiting) > 2 * _THREADS:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _states(products: list[Product], images: ImageLocator) -> list[tuple[Product, str]]:
    return [(product, image_state(product, images)) for product in products]


def image_state(product: Product, images: ImageLocator) -> str:
    """The state of one product's image file, or why there is none."""
    try:
        found = images.status(product.image_path, product.image_id)
    except ImageProblem as problem:
        return problem.reason
    return f"{found.st_size} {found.st_mtime_ns}"


def open_image(root: Path, path: str, image_id: str = "") -> Image.Image:
    """An image as models see it: RGB, upright, transparent parts white.

    Raises:
        ImageProblem: the path leaves ``root``, or the file does not decode.
    """
    return decode(locator(root).read(path, image_id, _DEFAULTS.max_file_bytes), MOST_PIXELS)[0]
