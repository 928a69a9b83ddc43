"""Attention of BLIP's text layers with keys and values that are computed once, where questions share an image.

Cross-attention has no interaction between query tokens. So the questions about one image can stand side by side on the query
axis, against that image's keys and values, which are then computed once an image instead of once a question. The result
is the same; ``tests/vqa/models/test_blip_exact.py`` compares it with transformers' own code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Fold:
    """Where the questions of a batch stand when those of one image are put side by side.

    Attributes:
        slots: for each question its place among ``images * width`` places, shape (Q,).
        images: number of images.
        width: the most questions that one image has.
    """

    slots: Tensor
    images: int
    width: int

    @classmethod
    def of(cls, image_of_question: Tensor, images: int) -> Fold:
        """The fold of questions that are sorted by image; ``image_of_question`` has shape (Q,)."""
        counts = torch.bincount(image_of_question, minlength=images)
        first = torch.cumsum(counts, 0) - counts
        place = torch.arange(len(image_of_question), device=counts.device) - first[image_of_question]
        width = int(counts.max())
        return cls(image_of_question * width + place, images, width)

    def fold(self, states: Tensor) -> Tensor:
        """(Q, L, D) → (images, width * L, D); places without a question are zero."""
        length, size = states.shape[1:]
        if len(self.slots) == self.images * self.width:
            return states.reshape(self.images, self.width * length, size)
        places = states.new_zeros(self.images * self.width, length, size)
        return places.index_copy(0, self.slots, states).view(self.images, self.width * length, size)

    def unfold(self, states: Tensor, length: int) -> Tensor:
        """(images, width * L, D) → (Q, L, D)."""
        places = states.reshape(self.images * self.width, length, states.shape[-1])
        return places if len(self.slots) == len(places) else places.index_select(0, self.slots)


def heads(states: Tensor, attention: Any) -> Tensor:
    """(B, L, D) → (B, heads, L, D / heads)."""
    batch, length, _ = states.shape
    return states.view(batch, length, attention.num_attention_heads, attention.attention_head_size).transpose(1, 2)


def keys_values(attention: Any, states: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of the states that are attended to, each (B, heads, T, D / heads)."""
    return heads(attention.key(states), attention), heads(attention.value(states), attention)


def attend(attention: Any, queries: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention; (B, L, D) in and out. ``mask`` is boolean, true where a key may be looked at."""
    dropout = attention.dropout.p if attention.training else 0.0
    mixed = functional.scaled_dot_product_attention(
        heads(attention.query(queries), attention), key, value, attn_mask=mask, dropout_p=dropout
    )
    return mixed.transpose(1, 2).reshape(queries.shape)
