"""Tables of docs/scaling.md: what an all-reduce costs on 8 to 256 GPUs, by a model of latency and bandwidth.

Bytes, calls and floating-point operations are counted on real steps of two images; everything about GPUs and their
links is an assumption, named here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from common.ceiling import flops
from common.communication import SMALL_BYTES, Link, ring_s
from common.setup import OurStep, Preset

GPUS = (8, 16, 32, 64, 128, 256)
SIZES = (64, 128, 256)
IMAGES_PER_GPU = 32
PEAK_FLOPS = 989e12
"""Of an H100 or H200 with bfloat16 and without sparsity, by its data sheet."""
UTILISATIONS = (0.1, 0.3)
"""Share of the peak that a step reaches, low and high: guesses, until `make bench-gpu` has run somewhere."""


@dataclass(frozen=True)
class Cluster:
    """GPUs in nodes: one link inside a node, another between nodes."""

    name: str
    inside: Link
    between: Link
    """As each GPU has it: a node's network interfaces shared by its GPUs."""
    gpus_per_node: int = 8

    def all_reduce_s(self, num_bytes: float, gpus: int) -> float:
        """Seconds of an all-reduce of gradients: rings in two levels, each GPU of a node takes its part over the nodes.

        Reduce-scatter and all-gather inside the nodes take together as long as an all-reduce there.
        """
        local = min(gpus, self.gpus_per_node)
        return ring_s(num_bytes, local, self.inside) + ring_s(num_bytes / local, gpus // local, self.between)

    def small_s(self, gpus: int) -> float:
        """Seconds of an all-reduce of a few bytes, latency alone: up a binary tree in two levels and down again."""
        local = min(gpus, self.gpus_per_node)
        return 2 * _depth(local) * self.inside.latency_s + 2 * _depth(gpus // local) * self.between.latency_s


def _depth(workers: int) -> int:
    return (workers - 1).bit_length()


NVLINK = Link(latency_s=3e-6, bytes_per_s=300e9)  # of 450 GB/s each way (NVLink 4), two thirds
CLUSTERS = (
    Cluster("nodes of 8 GPUs, NVLink, one 400 Gb/s InfiniBand port per GPU", NVLINK, Link(6e-6, 0.8 * 50e9)),
    Cluster("nodes of 8 GPUs, NVLink, one 400 Gb/s Ethernet port (RoCE) per node", NVLINK, Link(10e-6, 0.8 * 50e9 / 8)),
    Cluster(
        "nodes of 8 GPUs, NVLink, one 100 Gb/s Ethernet port (TCP) per node", NVLINK, Link(30e-6, 0.8 * 12.5e9 / 8)
    ),
)


@dataclass(frozen=True)
class Demand:
    """What one step of one worker asks of processor and network."""

    all_reduces: tuple[int, ...]
    """Bytes of each, in the order in which a worker starts them."""
    flops_per_image: float

    @property
    def gradients(self) -> list[int]:
        """Bytes of the all-reduces of gradients."""
        return [size for size in self.all_reduces if size >= SMALL_BYTES]

    @property
    def num_small(self) -> int:
        """All-reduces of batch moments, forth and back: each holds up the layer that waits for it."""
        return len(self.all_reduces) - len(self.gradients)

    def step_s(self, utilisation: float) -> float:
        """Seconds that a GPU computes at IMAGES_PER_GPU images."""
        return IMAGES_PER_GPU * self.flops_per_image / (utilisation * PEAK_FLOPS)


def demand(preset: Preset, size: int) -> Demand:
    """Counted on a step of two images at `size` pixels, in which this process takes itself for one of two workers."""
    calls = []

    def count(x: torch.Tensor, *_: Any, async_op: bool = False, **__: Any) -> mock.Mock | None:
        calls.append(x.numel() * x.element_size())
        return mock.Mock() if async_op else None

    step = OurStep(preset, preset.batch(2, size), torch.float32, size)
    with (
        mock.patch.object(dist, "is_initialized", return_value=True),
        mock.patch.object(dist, "get_world_size", return_value=2),
        mock.patch.object(dist, "all_reduce", count),
    ):
        work = flops(step)
    return Demand(tuple(calls), work / 2)


def tables() -> str:
    """Every table of docs/scaling.md, as Markdown."""
    demands = {f"{name}, {size} px": demand(Preset.read(name), size) for name in ("paper", "small") for size in SIZES}
    parts = ["\n".join(_demand_rows(demands))]
    parts += [f"**{cluster.name}**\n\n" + "\n".join(_cluster_rows(cluster, demands)) for cluster in CLUSTERS]
    return "\n\n".join(parts)


def _demand_rows(demands: dict[str, Demand]) -> Iterator[str]:
    low, high = UTILISATIONS
    yield (
        "| preset | weights, million | gradients, MB | of them in the last all-reduce | small all-reduces "
        f"| GFLOP an image | step at {low:.0%} and {high:.0%}, ms |"
    )
    yield "|---|---|---|---|---|---|---|"
    for name, each in demands.items():
        total = sum(each.gradients)
        yield (
            f"| {name} | {total / 4e6:.1f} | {total / 1e6:.0f} | {each.gradients[-1] / total:.0%} | {each.num_small} "
            f"| {each.flops_per_image / 1e9:.1f} | {each.step_s(low) * 1e3:.2f}, {each.step_s(high) * 1e3:.2f} |"
        )


def _cluster_rows(cluster: Cluster, demands: dict[str, Demand]) -> Iterator[str]:
    """Milliseconds for gradients + small all-reduces, and the step's share, nothing hidden, at each utilisation."""
    yield "| preset | " + " | ".join(f"{gpus} GPUs" for gpus in GPUS) + " |"
    yield "|---" * (1 + len(GPUS)) + "|"
    for name, each in demands.items():
        cells = []
        for gpus in GPUS:
            gradients_s = sum(cluster.all_reduce_s(size, gpus) for size in each.gradients)
            small_s = each.num_small * cluster.small_s(gpus)
            shares = [(total := gradients_s + small_s) / (total + each.step_s(share)) for share in UTILISATIONS]
            cells.append(f"{gradients_s * 1e3:.2f} + {small_s * 1e3:.2f}, {shares[0]:.0%} to {shares[1]:.0%}")
        yield f"| {name} | " + " | ".join(cells) + " |"
