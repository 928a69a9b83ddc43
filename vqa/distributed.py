"""What the processes of one training agree on. With a single process each of these is a plain call.

A process that goes its own way (raises, stops, picks another checkpoint) leaves the others waiting for it in the next collective
operation until a time-out. So decisions are made once and shared, and errors are raised everywhere.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import distributed, nn

from data_prep.outcomes import UserError

T = TypeVar("T")


def count() -> int:
    """How many processes train together, as the launcher says (torchrun's variable)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this one is; 0 is the one that writes."""
    return int(os.environ.get("RANK", "0"))


def wait_for_all() -> None:
    """Return when every process is here."""
    if _several():
        distributed.barrier()


def anywhere(flag: bool, device: torch.device) -> bool:
    """Whether it holds in at least one process."""
    if not _several():
        return flag
    shared = torch.tensor(float(flag), device=device)
    distributed.all_reduce(shared, distributed.ReduceOp.MAX)
    return bool(shared.item())


def everywhere(rows: Sequence[T]) -> list[T]:
    """The rows of all processes, in the order of their ranks."""
    if not _several():
        return list(rows)
    parts: list[list[T]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(parts, list(rows))
    return [row for part in parts for row in part]


def decided(decide: Callable[[], T]) -> T:
    """What the first process decides; only there ``decide`` is called.

    Raises:
        UserError: the first process raised it; it is raised in all of them.
    """
    if not _several():
        return decide()
    shared: list[Any] = [None, None]
    if rank() == 0:
        try:
            shared[0] = decide()
        except UserError as error:
            shared[1] = str(error)
    distributed.broadcast_object_list(shared)
    if shared[1] is not None:
        raise UserError(shared[1])
    decision: T = shared[0]
    return decision


@contextlib.contextmanager
def together(device: torch.device, work: str) -> Iterator[None]:
    """Ends by an error in every process if it did so in one.

    Raises:
        UserError: another process failed; with that one's words, and at what ``work`` it was.
    """
    failed: Exception | None = None
    try:
        yield
    except Exception as error:
        failed = error
    if not anywhere(failed is not None, device):
        return
    words = everywhere([f"{type(failed).__name__}: {failed}"] if failed is not None else [])
    if failed is not None:
        raise failed
    raise UserError(f"Another process of this training failed at {work}: {words[0]}")


@contextlib.contextmanager
def whole_weights(net: nn.Module) -> Iterator[None]:
    """The network with all of its weights in every process, to be used without DeepSpeed's own forward pass.

    ZeRO-3 keeps a part of each weight in each process. Its hooks on the modules would drop a weight again after the first
    use; a claim on the weight keeps them from that.
    """
    parts = [parameter for parameter in net.parameters() if hasattr(parameter, "ds_id")]
    if not parts:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parts):
        for parameter in parts:
            parameter.ds_active_sub_modules.add(_CLAIM)  # type: ignore[attr-defined]
        try:
            yield
        finally:
            for parameter in parts:
                parameter.ds_active_sub_modules.discard(_CLAIM)  # type: ignore[attr-defined]


_CLAIM = -1  # DeepSpeed's ids of modules begin at 0


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
