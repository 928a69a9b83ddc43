"""A frozen tower with its stores: one for each type that features are computed in.

A store is named by the digest of all that decides the features: the tower's weights, mean and deviation of the pixels, their
size, the device's kind and the type. An image is known by the digest of its prepared pixels, so a changed file or another
resampling is another image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from vqa.features.store import FeatureStore
from vqa.settings import FeatureSettings


class TowerFeatures:
    """Stored features of one tower.

    Args:
        settings: where, and how much.
        parts: the tower's weights and the buffers that its features depend on.
    """

    def __init__(self, settings: FeatureSettings, parts: Iterable[Tensor]) -> None:
        assert settings.folder is not None
        self.folder, self.max_bytes = Path(settings.folder), settings.max_gb * 1e9
        known = hashlib.sha256()
        for part in parts:
            known.update(f"{part.dtype} {tuple(part.shape)}".encode())
            known.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        self._weights = known.hexdigest()
        self._stores: dict[str, FeatureStore] = {}

    def encode(self, pixels: Tensor, dtype: torch.dtype, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """The features (N, ...) of uint8 pixels (N, 3, H, W), of which only the unknown ones are computed."""
        name = f"{self._weights} {tuple(pixels.shape[1:])} {pixels.device.type} {dtype}"
        keys = [hashlib.sha256(image.numpy()).digest() for image in pixels.cpu().contiguous()]
        store = self._stores.get(name)
        found: list[Tensor | None] = [None] * len(keys) if store is None else store.get_all(keys)
        lacking = [row for row, features in enumerate(found) if features is None]
        if store is None:  # the shape is known from the first features
            first = compute(pixels[:1])
            folder = self.folder / hashlib.sha256(name.encode()).hexdigest()[:16]
            self._stores[name] = FeatureStore(folder, tuple(first.shape[1:]), dtype, self.max_bytes)
            return self.encode(pixels, dtype, compute)
        if lacking:
            new = compute(pixels[lacking])
            for row, features in zip(lacking, new, strict=True):
                store.add(keys[row], features)
                found[row] = features
        return torch.stack([features.to(pixels.device) for features in found if features is not None])


def is_base(tower: nn.Module) -> bool:
    """Whether a tower's weights are those of the base: no adapter reaches it."""
    return not any("lora_" in name or "modules_to_save" in name for name, _ in tower.named_parameters())
