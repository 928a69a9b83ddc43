"""Finds an image below the image folder, however a copy of the dataset is laid out there.

An image is recorded under one path, such as ``45/4569c20b.jpg``. These strategies are tried in this order; the first that
finds a file decides:

=================  =====================================================================================================
recorded           the recorded path
prefix             the path with or without what leads up to ``images/``, ``small/`` or ``original/``, below any such folder
images_csv         the path that images.csv gives for the image id, in the same ways
two_letter_folder  the file name, or the image id, in a folder named after its first two letters
flat               the file name, or the image id, directly in the image folder or in one of those folders
similar_name       any of these paths with another extension, or in other upper and lower case
=================  =====================================================================================================

Two files that one strategy finds are an error that names both: the small and the original image differ, and so does what is
learned from them. Nothing outside the image folder is ever found. The record of an image keeps its recorded path, so it is the
same for every layout.

>>> ImageLocator(Path("/kaggle/input/abo")).locate("45/4569c20b.jpg", "70a3384411L")
'images/small/45/4569c20b.jpg'
"""

from __future__ import annotations

import os
import posixpath
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path

from data_prep.abo.reader import read_images_index
from data_prep.images.decode import ImageProblem, read_image_file, resolve_inside
from data_prep.outcomes import UserError

FOLDERS = ("images", "small", "original")  # of ABO's archives; copies have some of them, or none
RECORDED = "recorded"
STRATEGIES = {
    RECORDED: "at the recorded path",
    "prefix": "by adding or removing images/, small/ or original/",
    "images_csv": "by images.csv",
    "two_letter_folder": "in the two-letter folder",
    "flat": "by the file name alone",
    "similar_name": "under another extension or case",
}
_EXTENSION = re.compile(r"\.(jpe?g|png|webp|gif|bmp)$")
# images.csv beside the images as ABO has it (images/metadata), or wherever people put it.
_INDEX_FOLDERS = ("", "metadata", "../metadata", "images/metadata", "..")
_INDEX_NAMES = ("images.csv.gz", "images.csv")


class ImageLocator:
    """Finds the images of one folder and counts the strategies that found them. Several threads may share one.

    The folder is searched once, when the first image is not at its recorded path. Links to folders are not followed then.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.found: Counter[str] = Counter()  # different images, by strategy
        self._known: dict[tuple[str, str], str | ImageProblem] = {}
        self._lock = threading.Lock()

    def locate(self, path: str, image_id: str = "") -> str:
        """The path of an image below the image folder.

        Args:
            path: as recorded; "" where only the id is known.
            image_id: to look up in images.csv.

        Raises:
            ImageProblem: the path leaves the folder, no strategy finds a file, or one finds several.
        """
        if path and resolve_inside(self.root, path).is_file():
            self._note((path, image_id), RECORDED, path)
            return path
        found = self.elsewhere(path, image_id)
        resolve_inside(self.root, found)  # the file may be a link
        return found

    def read(self, path: str, image_id: str, max_bytes: int) -> bytes:
        """The bytes of an image; see `locate` and `read_image_file`."""
        try:
            data = read_image_file(self.root, path, max_bytes)
        except ImageProblem as problem:
            if problem.reason != "image_file_missing":
                raise
            return read_image_file(self.root, self.elsewhere(path, image_id), max_bytes)
        self._note((path, image_id), RECORDED, path)
        return data

    def status(self, path: str, image_id: str = "") -> os.stat_result:
        """What the file system says of an image's file, without reading it.

        Raises:
            ImageProblem: as `locate`, or it cannot be looked at.
        """
        with suppress(OSError, ValueError):
            if path:  # without one the image is looked for by its id
                return os.stat(f"{self.root}/{path}")  # noqa: PTH116 - a Path takes longer to make than the call
        try:
            return (self.root / self.locate(path, image_id)).stat()
        except (OSError, ValueError) as error:
            raise ImageProblem("image_unreadable", f"{path}: {error}") from error

    def elsewhere(self, path: str, image_id: str = "") -> str:
        """`locate` for an image that is not at its recorded path."""
        key = (path, image_id)
        with self._lock:
            known = self._known.get(key)
            if known is None or known == path:  # the latter: it was there, and has gone since
                try:
                    strategy, known = self._search(path, image_id)
                    self.found[strategy] += 1
                except ImageProblem as problem:
                    if problem.reason == "image_unreadable":
                        raise  # a file server may recover
                    known = problem
                self._known[key] = known
        if isinstance(known, ImageProblem):
            raise ImageProblem(known.reason, known.detail)  # a new one: threads add their tracebacks to it
        return known

    def summary(self) -> str:
        """What was found by other strategies than the first, in a sentence; "" if nothing was."""
        others = [f"{self.found[name]:,} {words}" for name, words in STRATEGIES.items() if name != RECORDED]
        told = [words for words in others if not words.startswith("0 ")]
        if not told:
            return ""
        return f"images found: {self.found[RECORDED]:,} {STRATEGIES[RECORDED]}, {', '.join(told)}"

    def _note(self, key: tuple[str, str], strategy: str, found: str) -> None:
        with self._lock:
            if key not in self._known:
                self._known[key] = found
                self.found[strategy] += 1

    def _search(self, path: str, image_id: str) -> tuple[str, str]:
        """The strategy that finds an image, and its path."""
        tried = list(self._candidates(path, image_id))
        for strategy, candidates in tried:
            if hits := [c for c in candidates if c in self._files.get(_folded(c), ())]:
                return strategy, _only(hits, path or image_id)
        for _, candidates in tried:
            if hits := [file for c in candidates for file in self._files.get(_folded(c), ())]:
                return "similar_name", _only(hits, path or image_id)
        raise ImageProblem("image_file_missing", path or image_id)

    def _candidates(self, path: str, image_id: str) -> Iterator[tuple[str, list[str]]]:
        """Where an image may be, by strategy; of a path's endings the longest that exists decides."""
        for ending in _endings(path):
            yield "prefix", self._below(ending)
        for ending in _endings(self._paths.get(image_id, "")):
            yield "images_csv", self._below(ending)
        names = [name for name in (posixpath.basename(path), image_id) if name and "/" not in name]
        yield "two_letter_folder", [place for name in names for place in self._below(f"{name[:2]}/{name}")]
        yield "flat", [place for name in names for place in self._below(name)]

    def _below(self, path: str) -> list[str]:
        return [posixpath.join(folder, path) for folder in self._folders]

    @cached_property
    def _folders(self) -> list[str]:
        """The image folder itself, "", and every folder below it that has the name of one of ABO's."""
        inner = {posixpath.dirname(path) for paths in self._files.values() for path in paths}
        parts = {posixpath.join(*folder.split("/")[:depth]) for folder in inner for depth in range(1, 9) if folder}
        return ["", *sorted(folder for folder in parts if posixpath.basename(folder).casefold() in FOLDERS)]

    @cached_property
    def _files(self) -> dict[str, list[str]]:
        """All image files by their path without extension and case."""
        files: dict[str, list[str]] = {}
        for folder, _, names in os.walk(self.root, onerror=_unreadable):
            below = os.path.relpath(folder, self.root).replace(os.sep, "/")
            for name in names:
                if _EXTENSION.search(name.casefold()):
                    path = name if below == "." else f"{below}/{name}"
                    files.setdefault(_folded(path), []).append(path)
        return files

    @cached_property
    def _paths(self) -> dict[str, str]:
        """images.csv, if there is one near the image folder."""
        for file in (self.root / folder / name for folder in _INDEX_FOLDERS for name in _INDEX_NAMES):
            if file.is_file():
                try:
                    return read_images_index(file)
                except UserError:
                    continue  # a table of somebody's own with that name
        return {}


@lru_cache(maxsize=8)
def locator(root: Path) -> ImageLocator:
    """The locator of a folder that all of this process shares."""
    return ImageLocator(root)


def _folded(path: str) -> str:
    return _EXTENSION.sub("", path.casefold())


def _endings(path: str) -> Iterator[str]:
    """A path, and what follows each of ABO's folders in it: images/small/45/a.jpg, small/45/a.jpg, 45/a.jpg."""
    if not path:
        return
    yield path
    parts = path.split("/")
    for place, part in enumerate(parts[:-1], 1):
        if part.casefold() in FOLDERS:
            yield "/".join(parts[place:])


def _only(hits: list[str], asked: str) -> str:
    """The only file among the hits.

    Raises:
        ImageProblem: there are several.
    """
    first, *others = sorted(set(hits))
    if others:
        raise ImageProblem(
            "image_ambiguous",
            f"{asked} is both {first} and {others[0]}: set data.images to the folder that is meant, or delete one",
        )
    return first


def _unreadable(error: OSError) -> None:
    raise ImageProblem("image_unreadable", f"{error.filename}: {error.strerror}") from error
