"""Opens untrusted images: only inside the image folder, only formats that are safe to decode, within limits.

Whatever is wrong with an image is an `ImageProblem` with one of these reasons:

======================  ==============================================================================================
path_outside_root       an absolute path, ``..``, or a link that leads out of the image folder
image_file_missing      there is no such file, by any strategy of `data_prep.images.locate`
image_ambiguous         two files could be meant: see `data_prep.images.locate`
image_not_a_file        a folder, a pipe, a device
image_unreadable        the operating system refuses to read it, or the disk fails
image_empty_file        zero bytes
image_file_too_large    more bytes than ``max_file_bytes``
image_not_an_image      an HTML page, text, or a format that is not accepted
image_too_many_pixels   more than ``max_pixels`` according to its header: a decompression bomb
image_too_many_scans    a JPEG with more than 100 scans, each of which costs a pass over the whole image: a time bomb
image_too_small         its shorter side has fewer pixels than ``min_side``
image_animated          several frames, so that nobody knows which one a question is about
image_mode_unsupported  16-bit or floating-point gray, which has no agreed value for white
image_truncated         the file ends too early
image_broken            it starts like an image but does not decode
======================  ==============================================================================================
"""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
import zlib
from functools import lru_cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError

# Pillow knows some forty formats, and for one of them (EPS) it runs an external program. Shops and browsers use these.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
# About 1 GB decoded. `validate.max_pixels` may be up to this, so whatever validation accepts every later stage can decode.
MOST_PIXELS = 1 << 28
Image.MAX_IMAGE_PIXELS = MOST_PIXELS  # Pillow's own limit: it would warn from 89 megapixels and refuse from 179
# Encoders write ten or so. A scan can be as small as a hundred bytes, and takes 40 ms in an image of 64 megapixels, so a file
# of a few megabytes would keep a task busy for hours.
_MOST_SCANS = 100
_START_OF_SCAN = b"\xff\xda"
# How to undo each value of EXIF's orientation tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "RGBX", "La", "RGBa"}


class ImageProblem(Exception):
    """Why an image cannot be used."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


def resolve_inside(root: Path, relative: str) -> Path:
    """The file that ``relative`` names below ``root``, with links followed. It need not exist.

    Raises:
        ImageProblem: the path leaves the root: it is absolute or has ``..``, or a link on the way leads elsewhere.
    """
    _check_form(relative)
    try:
        base, real = os.path.realpath(root), os.path.realpath(root / relative)
    except (OSError, ValueError) as error:  # half a surrogate pair, for example, has no encoding
        raise ImageProblem("image_unreadable", f"{relative!r}: {error}") from error
    if real != base and not real.startswith(base + os.sep):
        raise ImageProblem("path_outside_root", f"{relative}: a link leads out of {root}")
    return Path(real)


# A folder of ABO's images holds some 1,500 files, and resolving it asks the file system about each folder above it.
_resolve_folder = lru_cache(maxsize=65_536)(resolve_inside)


def read_image_file(root: Path, relative: str, max_bytes: int) -> bytes:
    """The bytes of ``root/relative``.

    Raises:
        ImageProblem: the path leaves the root, or it is not a file of 1 to ``max_bytes`` bytes.
    """
    _check_form(relative)
    folder = relative.rpartition("/")[0]
    if folder:
        _resolve_folder(root, folder)
    try:
        descriptor = _open(root, relative)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ImageProblem("image_not_a_file", relative)
            if status.st_size == 0:
                raise ImageProblem("image_empty_file", relative)
            if status.st_size > max_bytes:
                raise ImageProblem("image_file_too_large", f"{relative} has {status.st_size} bytes")
            data = os.read(descriptor, status.st_size)
            # Linux reads at most 2 GiB at once, and a network file system may return less than was asked for.
            while len(data) < status.st_size and (more := os.read(descriptor, status.st_size - len(data))):
                data += more
            return data
        finally:
            os.close(descriptor)
    except (FileNotFoundError, NotADirectoryError):
        raise ImageProblem("image_file_missing", relative) from None
    except (OSError, ValueError) as error:
        raise ImageProblem("image_unreadable", f"{relative}: {getattr(error, 'strerror', None) or error}") from error


def _check_form(relative: str) -> None:
    if not relative or relative.startswith(("/", "\\")) or "\0" in relative or ".." in relative.split("/"):
        raise ImageProblem("path_outside_root", relative[:200])


def _open(root: Path, relative: str) -> int:
    # Without O_NONBLOCK, opening a named pipe would block until somebody writes into it.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(root / relative, flags)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
    return os.open(resolve_inside(root, relative), flags)  # the file itself is a link


def decode(
    data: bytes, max_pixels: int, thumbnail: tuple[int, int] | None = None, min_side: int = 1
) -> tuple[Image.Image, str, tuple[int, int]]:
    """Decode an image completely, as RGB and upright. Transparent parts become white, as shop pages show them.

    Args:
        data: the file's bytes.
        max_pixels: an image with more pixels, according to its header, is not decoded.
        thumbnail: return the image averaged down to this size. A JPEG is still decompressed to its last byte, so the same
            files fail; only the arithmetic for full-size pixels, which cannot fail, is skipped.
        min_side: an image whose shorter side has fewer pixels, according to its header, is not decoded.

    Returns:
        The image, the file's format, and its width and height as stored.

    Raises:
        ImageProblem: the image cannot be used.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            size, kind = image.size, image.format or ""
            if size[0] * size[1] > max_pixels:
                raise ImageProblem("image_too_many_pixels", f"{size[0]} x {size[1]}")
            if kind in ("JPEG", "MPO") and data.count(_START_OF_SCAN) > _MOST_SCANS:
                raise ImageProblem("image_too_many_scans", f"{data.count(_START_OF_SCAN)} scans")
            if min(size) < min_side:
                raise ImageProblem("image_too_small", f"{size[0]} x {size[1]} pixels")
            if kind != "MPO" and getattr(image, "is_animated", False):
                raise ImageProblem("image_animated", f"{kind} with several frames")
            if image.mode not in _MODES:
                raise ImageProblem("image_mode_unsupported", f"{kind} in mode {image.mode}")
            # A JPEG decoder scales blocks of 8 x 8 pixels, so the last row and column of a draft may be partly padding. Its
            # box says which part belongs to the image.
            draft = image.draft("RGB", thumbnail) if thumbnail else None
            image.load()
            rgb = _as_rgb(image)
            if thumbnail:
                rgb = rgb.resize(thumbnail, Image.Resampling.BOX, box=draft[1] if draft else None)
            return _upright(rgb, image), kind, size
    except ImageProblem:
        raise
    except UnidentifiedImageError:
        raise ImageProblem("image_not_an_image", f"starts with {data[:24]!r}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageProblem("image_too_many_pixels", str(error)) from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, MemoryError) as error:
        text = str(error)
        reason = "image_truncated" if "truncated" in text.lower() or isinstance(error, EOFError) else "image_broken"
        raise ImageProblem(reason, f"{type(error).__name__}: {text}"[:200]) from error
    except (struct.error, zlib.error, OverflowError, RecursionError, AttributeError) as error:
        # Pillow's parsers do not catch these themselves when a header is broken.
        raise ImageProblem("image_broken", f"{type(error).__name__}: {error}"[:200]) from error


def normalized(image: Image.Image) -> Image.Image:
    """An image that is decoded already as `decode` returns it: RGB, upright, transparent parts white."""
    return _upright(_as_rgb(image), image)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        layer = image.convert("RGBA")
        flat = Image.new("RGB", image.size, "white")
        flat.paste(layer, mask=layer.getchannel("A"))
        return flat
    return image.convert("RGB")


def _upright(image: Image.Image, source: Image.Image) -> Image.Image:
    """Turn ``image`` as the orientation tag of ``source`` says."""
    # Most files have no tag; `getexif` would take time to find that out.
    if "exif" not in source.info and "Raw profile type exif" not in source.info and "xmp" not in source.info:
        return image
    try:
        orientation = source.getexif().get(0x0112, 1)
    except Exception:  # Pillow's EXIF parser raises many kinds of errors; a broken tag does not make the image unusable
        return image
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)
