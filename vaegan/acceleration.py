"""Other ways to run the same training step: networks compiled, or the whole step replayed as a CUDA graph."""

import ctypes
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from vaegan.augment import Augmentation
from vaegan.losses import LossConfig
from vaegan.networks import Networks
from vaegan.optimizers import Optimizers
from vaegan.steps import Batch, check_losses, train_step

Acceleration = Literal["none", "compile", "graphs"]
WARM_UP = 3  # steps before a capture: libraries choose algorithms and allocate work space in the first ones
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's <malloc.h>


class Step(Protocol):
    """One update with a batch, beta and, where not all images are augmented, the probability that one is."""

    def __call__(self, batch: Batch, beta: float, probability: float | None = None) -> dict[str, Tensor]: ...


def make_step(
    kind: Acceleration,
    networks: Networks,
    optimizers: Optimizers,
    config: LossConfig,
    *,
    augment: float | Augmentation,
    dtype: torch.dtype,
) -> Step:
    """`train_step` of batch, beta and probability with everything else bound.

    Raises:
        ValueError: CUDA graphs without a GPU, or an objective that `check_losses` refuses.
    """
    check_losses(config, networks.config, captured=kind == "graphs")
    plain = _Plain(networks, optimizers, config, Augmentation.of(augment), dtype)
    if kind == "graphs":
        if not next(networks.parameters()).is_cuda:
            raise ValueError("acceleration graphs needs a GPU, and the networks are on the CPU: pass --gpu, or none")
        return GraphedStep(plain)
    if kind == "compile":
        compile_networks(networks)
    return plain


def compile_networks(networks: Networks, backend: str = "inductor") -> None:
    """Compile each network's forward pass, in place, for each shape that it meets.

    A compiled backward pass computes all gradients, asked for or not: the step's passes that want an image's gradient
    alone then pay for weights too. Measured before use, on the hardware at hand (benchmarks/gpu_train_step.py).
    """
    import torch._functorch.config

    torch._functorch.config.donated_buffer = False  # a step goes back through one graph more than once
    for network in networks.present().values():
        network.compile(dynamic=False, backend=backend)


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, where its C library is glibc; nothing happens elsewhere.

    By default every large tensor is a mapping of its own, which the kernel takes back at once and hands out again page
    by page, filled with zeros: 131,000 page faults in a CPU step of the paper's networks, a tenth of its time.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@dataclass
class _Plain:
    networks: Networks
    optimizers: Optimizers
    config: LossConfig
    augment: Augmentation
    dtype: torch.dtype

    def __call__(
        self, batch: Batch, beta: float | Tensor, probability: float | Tensor | None = None
    ) -> dict[str, Tensor]:
        augment = self.augment if probability is None else replace(self.augment, probability=probability)
        return train_step(
            self.networks, self.optimizers, batch, self.config, beta=beta, augment=augment, dtype=self.dtype
        )


class GraphedStep:
    """The whole step, updates included, captured once and replayed: one launch instead of a thousand.

    Learning rates are part of the capture: make a new one after they change. So is whether a probability is given, but
    not which. Returned figures live in fixed tensors that the next call overwrites.
    """

    def __init__(self, plain: _Plain) -> None:
        self.plain = plain
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Batch, beta: float, probability: float | None = None) -> dict[str, Tensor]:
        """One update with this batch."""
        if self.graph is None:
            self._capture(batch, beta, probability)
        assert self.graph is not None
        for part in fields(Batch):
            getattr(self.batch, part.name).copy_(getattr(batch, part.name), non_blocking=True)
        self.beta.fill_(beta)
        assert (probability is None) == (self.probability is None)
        if self.probability is not None and probability is not None:
            self.probability.fill_(probability)
        self.graph.replay()
        return self.figures

    def _capture(self, batch: Batch, beta: float, probability: float | None) -> None:
        optimizers, networks = self.plain.optimizers, self.plain.networks
        for optimizer in optimizers.by_name.values():
            for group in optimizer.param_groups:
                group["capturable"] = True  # its count of steps then lives on the GPU
        self.batch = Batch(**{part.name: getattr(batch, part.name).clone() for part in fields(Batch)})
        self.beta = torch.full((), beta, device=batch.x.device)
        self.probability = None if probability is None else torch.full((), probability, device=batch.x.device)
        before = {name: value.clone() for name, value in (networks.state_dict() | optimizers.tensors()).items()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self.plain(self.batch, self.beta, self.probability)
        torch.cuda.current_stream().wait_stream(side)
        with torch.no_grad():  # in place, since the graph will know these tensors by their addresses
            for name, value in (networks.state_dict() | optimizers.tensors()).items():
                value.copy_(before[name]) if name in before else value.zero_()  # no state before the first step
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.figures: dict[str, Any] = self.plain(self.batch, self.beta, self.probability)
