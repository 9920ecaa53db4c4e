"""Gradient communication: what a step sends, how long it takes between two processes, and a model for many GPUs."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from common.measure import conditions, in_turn, seconds
from common.setup import OurStep, Preset

SMALL_BYTES = 64 * 1024  # below: moments of a batch norm, a matter of latency; above: gradients, one of bandwidth
PING_BYTES = (2**10, 2**16, 2**20, 2**23)  # and as many as the largest all-reduce of a step


# ----------------------------------------------------------------------------------------------------------- the model
@dataclass(frozen=True)
class Link:
    """One kind of connection. An assumption or a fit, never a specification."""

    latency_s: float
    """Of a message from one worker to the next, start to end."""
    bytes_per_s: float
    """That one worker can send while it receives as much."""


def ring_s(num_bytes: float, workers: int, link: Link) -> float:
    """Seconds of a ring all-reduce: 2 (N - 1) messages of bytes / N each, sent by every worker at a time.

    Patarasu & Yuan 2009: no all-reduce sends less than 2 (N - 1) / N of the bytes per worker.
    """
    return 2 * (workers - 1) * (link.latency_s + num_bytes / workers / link.bytes_per_s)


def fit_link(times_s: Mapping[int, float], workers: int) -> Link:
    """Latency and bandwidth of a ring whose all-reduces of so many bytes took so long.

    Latency from the shortest, bandwidth from the longest: messages that fit into a cache travel faster than both say.
    """
    short, long = min(times_s), max(times_s)
    latency_s = times_s[short] / (2 * (workers - 1))
    s_per_byte = (times_s[long] - times_s[short]) / (long - short)
    return Link(latency_s, 2 * (workers - 1) / workers / s_per_byte)


# --------------------------------------------------------------------------------------- the measurement, two processes
@dataclass
class Clock:
    """Stands in for `dist.all_reduce` and adds up how long the caller is held by it."""

    overlap: bool
    """Whether asynchronous calls stay so; else each is waited for at once, which is the whole of its time."""
    all_reduce: Callable[..., Any] = field(default_factory=lambda: dist.all_reduce)
    calls: list[list[float]] = field(default_factory=list)
    """[bytes, seconds] of each."""

    def __call__(self, x: Tensor, *args: Any, async_op: bool = False, **options: Any) -> Any:
        """The all-reduce, timed; asynchronous callers get what they can wait for, timed too."""
        entry = [float(x.numel() * x.element_size()), 0.0]
        self.calls.append(entry)
        with _added_to(entry):
            work = self.all_reduce(x, *args, async_op=async_op and self.overlap, **options)
        if not async_op:
            return None
        return _TimedWork(work, entry)


@dataclass
class _TimedWork:
    work: Any
    entry: list[float]

    def wait(self) -> None:
        with _added_to(self.entry):
            if self.work is not None:
                self.work.wait()


@contextmanager
def _added_to(entry: list[float]) -> Iterator[None]:
    started_s = time.perf_counter()
    yield
    entry[1] += time.perf_counter() - started_s


@dataclass
class Measured:
    """What two workers saw; every list has one entry per round."""

    step_s: list[float]
    """A step as it is, communication under way while other gradients are computed."""
    held_s: list[float]
    """Of it, a worker's wait for communication and for the other worker; mean of the two."""
    waited_step_s: list[float]
    """A step that waits for each all-reduce at once."""
    calls: list[int]
    """Bytes of each all-reduce of a step."""
    sent_s: list[list[float]]
    """Of that step, for each of `calls` the time of the worker that came last, who waited for nobody."""
    ping_s: dict[int, float]
    """Seconds of the quickest all-reduce by its bytes, nothing else going on."""
    flat_s: list[float]
    """One all-reduce of all gradients."""
    split_s: list[float]
    """The same bytes in the step's own all-reduces of gradients, one after the other."""
    load: str = ""
    """The load average during the measurement."""


def measure(preset: Preset, global_batch: int, dtype: torch.dtype, rounds: int) -> Measured:
    """Two gloo processes of one thread each on the loopback interface, each with half of the batch."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.pt"
        mp.spawn(_worker, (f"file://{folder}/store", str(result), preset, global_batch, dtype, rounds), nprocs=2)
        return Measured(**torch.load(result))


def _worker(
    rank: int, store: str, result: str, preset: Preset, global_batch: int, dtype: torch.dtype, rounds: int
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    step = OurStep(preset, preset.batch(global_batch // 2, worker=rank, num_workers=2), dtype)
    step()
    steps = [_timed_step(step, overlap) for _ in range(rounds) for overlap in (False, True)]
    waited, overlapped = steps[0::2], steps[1::2]
    calls = [int(size) for size, _ in waited[0][1]]
    sizes = [size for size in calls if size >= SMALL_BYTES]
    flat, split = _flat_and_split(sizes, rounds)
    figures = dict(
        step_s=[total for total, _ in overlapped],
        held_s=_over_workers([sum(held for _, held in entries) for _, entries in overlapped], dist.ReduceOp.SUM, 0.5),
        waited_step_s=[total for total, _ in waited],
        calls=calls,
        sent_s=[_over_workers([held for _, held in entries], dist.ReduceOp.MIN) for _, entries in waited],
        ping_s={size: _ping(size) for size in (*PING_BYTES, max(sizes))},
        flat_s=flat,
        split_s=split,
        load=str(conditions()["load average"]),
    )
    if rank == 0:
        torch.save(figures, result)
    dist.destroy_process_group()


def _timed_step(step: OurStep, overlap: bool) -> tuple[float, list[list[float]]]:
    """Seconds of a step that both workers begin together, and its all-reduces."""
    clock = Clock(overlap)
    dist.barrier()
    with mock.patch.object(dist, "all_reduce", clock):
        return seconds(step), clock.calls


def _over_workers(values: list[float], operation: Any, scale: float = 1.0) -> list[float]:
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total, operation)
    return (scale * total).tolist()


def _flat_and_split(sizes: list[int], rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of one all-reduce of all bytes, and of one per entry of `sizes`, in turn."""
    whole = torch.zeros(sum(sizes) // 4)
    parts = whole.split([size // 4 for size in sizes])
    dist.all_reduce(whole)
    times = in_turn(
        {"flat": lambda: dist.all_reduce(whole), "split": lambda: [dist.all_reduce(part) for part in parts]}, rounds
    )
    return times["flat"], times["split"]


def _ping(num_bytes: int) -> float:
    """Seconds of the quickest all-reduce, of each the time of the worker that came last.

    Every one sends a tensor just written, as a step does.
    """
    times_s = []
    for _ in range(min(max(2**26 // num_bytes, 3), 20)):
        x = torch.ones(num_bytes // 4)
        dist.barrier()
        times_s.append(seconds(lambda x=x: dist.all_reduce(x)))  # type: ignore[misc]
    return min(_over_workers(times_s, dist.ReduceOp.MIN))
