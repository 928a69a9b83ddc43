"""The features of images as memory-mapped files: written once by whoever encodes an image first, read by everybody.

A store is a folder. Each process that writes appends to a file of its own, so no two write to the same one, on a network file
system neither. Records have one size: 32 bytes of key, 32 bytes that begin with the CRC-32 of key and features, the features. A
file's torn end is shorter than a record and is not looked at; a damaged record is not used, and its image is encoded again.
"""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import uuid
import zlib
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

_HEAD = 64  # bytes; keeps the features aligned
_FREE = 2_000_000_000  # bytes that are left free on the disk
_SUFFIX = ".features"


class FeatureStore:
    """Features of one shape and type, by a key of 32 bytes.

    Args:
        folder: of the store; made when needed.
        shape: of an image's features.
        dtype: of the features.
        max_bytes: the store's files may take this much in all; what comes later is not kept.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: torch.dtype, max_bytes: float) -> None:
        self.folder, self.shape, self.dtype, self.max_bytes = folder, shape, dtype, max_bytes
        self._record = _HEAD + torch.empty(shape, dtype=dtype, device="meta").nbytes
        self._maps: dict[str, tuple[mmap.mmap, int]] = {}  # by file name: the mapping and its whole records
        # File and row of each key's records: one, unless two processes met, or a damaged one was written again.
        self._places: dict[bytes, list[tuple[str, int]]] = {}
        self._sound: set[bytes] = set()  # keys whose first record has a right checksum
        self._written: set[bytes] = set()
        self._file: int | None = None
        self._name = f"{uuid.uuid4().hex}{_SUFFIX}"
        self._full = False
        self.refresh()

    def __len__(self) -> int:
        return len(self._places)

    def refresh(self) -> None:
        """Look for what others have written since."""
        for path in sorted(self.folder.glob(f"*{_SUFFIX}")):
            known = self._maps[path.name][1] if path.name in self._maps else 0
            count = path.stat().st_size // self._record
            if count <= known:
                continue
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), count * self._record, access=mmap.ACCESS_READ)
            self._maps[path.name] = mapped, count
            for row in range(known, count):
                key = mapped[row * self._record : row * self._record + 32]
                self._places.setdefault(key, []).append((path.name, row))

    def get(self, key: bytes) -> Tensor | None:
        """A copy of an image's features on the CPU; None where they are not known or damaged."""
        places = self._places.get(key, [])
        while places:
            mapped, start = self._maps[places[0][0]][0], places[0][1] * self._record
            data = bytearray(mapped[start + _HEAD : start + self._record])  # torch warns of buffers it cannot write to
            if key in self._sound or struct.unpack_from("<I", mapped, start + 32)[0] == zlib.crc32(
                data, zlib.crc32(key)
            ):
                self._sound.add(key)
                return torch.frombuffer(data, dtype=self.dtype).view(self.shape)
            places.pop(0)
        self._places.pop(key, None)
        return None

    def get_all(self, keys: Iterable[bytes]) -> list[Tensor | None]:
        """`get` for several; looks once for what others have written if one is not known."""
        keys = list(keys)
        if any(key not in self._places for key in keys):
            self.refresh()
        return [self.get(key) for key in keys]

    def add(self, key: bytes, features: Tensor) -> None:
        """Keep an image's features, unless they are known or there is no room."""
        if self._full or key in self._written or key in self._places or self._no_room():
            return
        assert tuple(features.shape) == self.shape, features.shape
        assert features.dtype == self.dtype, features.dtype
        data = features.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        record = key + struct.pack("<I", zlib.crc32(data, zlib.crc32(key))) + bytes(_HEAD - 36) + data
        try:
            if self._file is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self.folder / self._name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            whole = os.write(self._file, record) == len(record)
        except OSError as error:
            self._stop(str(error))
            return
        if not whole:  # what would follow a torn record could not be found
            self._stop("the disk took only a part of a record")
            return
        self._written.add(key)

    def _no_room(self) -> bool:
        folder = next(folder for folder in (self.folder, *self.folder.parents) if folder.is_dir())
        taken = sum(path.stat().st_size for path in self.folder.glob(f"*{_SUFFIX}"))
        if taken + self._record > self.max_bytes:
            self._stop(f"features.max_gb is {self.max_bytes / 1e9:g}")
        elif shutil.disk_usage(folder).free < _FREE + self._record:
            self._stop(f"less than {_FREE / 1e9:g} GB of the disk are free")
        return self._full

    def _stop(self, reason: str) -> None:
        self._full = True
        print(f"{self.folder}: no more image features are kept ({reason}); further images are encoded anew", flush=True)
