"""Failures of a training that the user can fix, in words."""

from __future__ import annotations

import errno
from pathlib import Path

from safetensors import SafetensorError

from data_prep.outcomes import UserError


def diverged(step: int, learning_rate: float) -> UserError:
    """The error for a loss or weight that became infinite or NaN."""
    return UserError(
        f"The loss or a weight became infinite or NaN by step {step}. The last good checkpoint is kept. Lower "
        f"train.learning_rate (now {learning_rate:g}) or set train.precision to fp32, and use a new --run-dir."
    )


def disk_full(error: BaseException, out: Path) -> UserError | None:
    """The error for a write that failed because the disk is full; None for any other error."""
    numbers = (errno.ENOSPC, errno.EDQUOT)
    words = str(error)
    full = (
        (isinstance(error, OSError) and error.errno in numbers)
        # The Rust library puts the number into its message.
        or (isinstance(error, SafetensorError) and any(f"os error {number}" in words for number in numbers))
        # torch's zip writer does not mention the disk, only that the file is shorter than it should be.
        or (isinstance(error, RuntimeError) and ("inline_container" in words or "PytorchStreamWriter" in words))
    )
    if not full:
        return None
    return UserError(
        f"The disk of {out} is full (or its quota is used up). The last complete checkpoint is intact: free some space and "
        f"start again to resume from it."
    )
