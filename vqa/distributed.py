"""Collective operations of the ranks (processes) of one training. With a single rank each is a plain call.

A rank that goes its own way (raises, stops, picks another checkpoint) leaves the others waiting in the next collective operation
until it times out. So decisions are made on rank 0 and shared, and errors are raised on every rank.
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

_CLAIM = -1  # a module id that DeepSpeed never gives: its own start at 0


def count() -> int:
    """The number of ranks, as the launcher sets it (torchrun's variable)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's rank; rank 0 writes the files."""
    return int(os.environ.get("RANK", "0"))


def wait_for_all() -> None:
    """Return when every rank has called this."""
    if _several():
        distributed.barrier()


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether ``flag`` is true on at least one rank."""
    if not _several():
        return flag
    shared = torch.tensor(float(flag), device=device)
    distributed.all_reduce(shared, distributed.ReduceOp.MAX)
    return bool(shared.item())


def all_gather(rows: Sequence[T]) -> list[T]:
    """The rows of all ranks, in order of rank. They are pickled."""
    if not _several():
        return list(rows)
    parts: list[list[T]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(parts, list(rows))
    return [row for part in parts for row in part]


def rank0_decides(decide: Callable[[], T]) -> T:
    """Call ``decide`` on rank 0 and return its result on every rank.

    Raises:
        UserError: rank 0 raised it; it is raised on every rank.
    """
    if not _several():
        return decide()
    shared: list[Any] = [None, None]  # result, error message
    if rank() == 0:
        try:
            shared[0] = decide()
        except UserError as error:
            shared[1] = str(error)
    distributed.broadcast_object_list(shared)
    if shared[1] is not None:
        raise UserError(shared[1])
    return shared[0]


@contextlib.contextmanager
def raise_together(device: torch.device, work: str) -> Iterator[None]:
    """Re-raise one rank's error on every rank, once all have left the ``with`` block.

    Raises:
        UserError: another rank failed; with its message and what it was doing (``work``).
    """
    failed: Exception | None = None
    try:
        yield
    except Exception as error:
        failed = error
    if not any_rank(failed is not None, device):
        return
    messages = all_gather([f"{type(failed).__name__}: {failed}"] if failed is not None else [])
    if failed is not None:
        raise failed
    raise UserError(f"Another process of this training failed while {work}: {messages[0]}")


@contextlib.contextmanager
def whole_weights(net: nn.Module) -> Iterator[None]:
    """Gather all weights on every rank, to use the network outside of DeepSpeed's forward pass.

    ZeRO-3 keeps a partition of each weight on each rank. Its module hooks would release a gathered weight after its first
    use; a weight that an unknown module claims as active stays.
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


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
