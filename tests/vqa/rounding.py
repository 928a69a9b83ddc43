"""How far two correct computations of the same fp32 numbers may be apart.

Each operation rounds its result, by a relative error of up to eps / 2. Two correct computations of a sum add its terms in another
order as soon as the batch size, the number of threads or the instruction set differ (AVX2 adds 8 numbers at a time, AVX-512 16).
In both of them errors add up along the longest chain of operations, the depth, so that at worst::

    |a - b| <= depth * eps * the largest number involved

What must be the same to the last bit (saved and loaded weights, a resumed training) is compared with ``==``, and only within one
way of computing.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS = torch.finfo(torch.float32).eps  # 1.2e-7

# The longest chain through a layer of the tiny networks: sums over 96 numbers (ViLT's query; BLIP is narrower), 24 (score), at most
# 65 tokens or patches, 96 (output), 96 and 192 (feed-forward), and two layer norms over 96; each in at least 4 lanes of a vector unit.
LAYER = (96 + 24 + 65 + 96 + 96 + 192 + 2 * 96) // 4
DEPTH = 5 * LAYER  # BLIP: three layers for the image, one each for question and answer; ViLT has 3 in all
BACKWARD = 3 * DEPTH  # each product of the forward pass has two more in the backward pass
PIXEL = 4  # scaling, subtraction of the mean, division by the deviation; scaling is a division or a product
MERGED = 2 * DEPTH  # W x + B (A x) against (W + B A) x: each of the two has a sum that the other has not

# Of the probability of an answer, relative. Each of up to 5 tokens has a log-probability that is a difference of two scores, and the
# scores of the tiny networks are below 6.
PROBABILITY = 5 * 2 * DEPTH * EPS * 6


def assert_same_but_for_rounding(found: Tensor, expected: Tensor, depth: int = DEPTH) -> None:
    """Fails where two tensors are further apart than rounding explains."""
    torch.testing.assert_close(found, expected, rtol=0, atol=depth * EPS * float(expected.abs().max()))
