"""Sums and means over a process group's workers, each with its part of a batch; nothing to do without a group."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def num_workers() -> int:
    """Workers in the process group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _SumOverWorkers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def sum_over_workers(x: Tensor) -> Tensor:
    """All-reduce with a gradient: each worker's output depends on every worker's input."""
    return _SumOverWorkers.apply(x)


def start_average(tensors: Iterable[Tensor]) -> Callable[[], None]:
    """Begin to replace tensors by their mean over the workers, in place, in one flat all-reduce.

    Returns:
        What waits for the end and writes the means; until then the tensors are as they were, and other work may go on.
    """
    workers = num_workers()
    if workers == 1:
        return lambda: None
    everything = list(tensors)
    flat = torch.cat([tensor.reshape(-1) for tensor in everything])
    work = dist.all_reduce(flat, async_op=True)

    def finish() -> None:
        assert work is not None  # None would mean that this process isn't in the group
        work.wait()
        flat.div_(workers)
        parts = flat.split([tensor.numel() for tensor in everything])
        torch._foreach_copy_(everything, [part.view_as(t) for part, t in zip(parts, everything, strict=True)])

    return finish


def average_over_workers(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their mean over the workers, in place."""
    start_average(tensors)()


def broadcast_number(value: float) -> float:
    """The first worker's number, on every worker: what only it computed, and all decide by."""
    if num_workers() == 1:
        return value
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    number = torch.tensor(value, dtype=torch.float64, device=device)
    dist.broadcast(number, src=0)
    return float(number)
