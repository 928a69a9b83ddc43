"""Attention in which the questions about one image share the image's keys and values.

Query tokens do not interact in cross-attention. So the questions about an image can be laid side by side on the query axis, and
the image's keys and values are computed once per image instead of once per question. The result is the same;
``tests/vqa/models/test_blip_exact.py`` compares it with transformers' own code.

Shapes: Q questions, L tokens of the longest, N images, T tokens of an image, D hidden size, B either Q or N.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Fold:
    """The places of a batch's questions when those of one image are side by side.

    Attributes:
        slots: the place of each question among ``images * width``, shape (Q,).
        images: number of images, N.
        width: the highest number of questions of one image.
    """

    slots: Tensor
    images: int
    width: int

    @classmethod
    def of(cls, image_of_question: Tensor, images: int) -> Fold:
        """The fold of questions in order of their images; ``image_of_question`` has shape (Q,) and ascends."""
        counts = torch.bincount(image_of_question, minlength=images)
        first = torch.cumsum(counts, 0) - counts
        place = torch.arange(len(image_of_question), device=counts.device) - first[image_of_question]
        width = int(counts.max())
        return cls(image_of_question * width + place, images, width)

    def fold(self, states: Tensor) -> Tensor:
        """(Q, L, D) → (N, width * L, D); places without a question are zero."""
        length, size = states.shape[1:]
        # With as many questions for each image, which is the common case, a view does: nothing is copied.
        if len(self.slots) == self.images * self.width:
            return states.reshape(self.images, self.width * length, size)
        places = states.new_zeros(self.images * self.width, length, size)
        return places.index_copy(0, self.slots, states).view(self.images, self.width * length, size)

    def unfold(self, states: Tensor, length: int) -> Tensor:
        """(N, width * L, D) → (Q, L, D)."""
        places = states.reshape(self.images * self.width, length, states.shape[-1])
        return places if len(self.slots) == len(places) else places.index_select(0, self.slots)


def heads(states: Tensor, attention: Any) -> Tensor:
    """(B, L, D) → (B, heads, L, D / heads)."""
    batch, length, _ = states.shape
    return states.view(batch, length, attention.num_attention_heads, attention.attention_head_size).transpose(1, 2)


def keys_values(attention: Any, states: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of the states attended to, each (B, heads, T, D / heads)."""
    return heads(attention.key(states), attention), heads(attention.value(states), attention)


def attend(attention: Any, queries: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention, (B, L, D) in and out.

    ``mask`` is boolean, true where a key takes part: the opposite of what `torch.nn.MultiheadAttention` means by a mask.
    """
    dropout = attention.dropout.p if attention.training else 0.0
    mixed = functional.scaled_dot_product_attention(
        heads(attention.query(queries), attention), key, value, attn_mask=mask, dropout_p=dropout
    )
    return mixed.transpose(1, 2).reshape(queries.shape)
