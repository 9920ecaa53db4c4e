"""The machine's ceiling for a step: its own convolutions and matrix products, each by itself in its best layout."""

import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from common.measure import seconds
from vaegan.estimate import FlopCounter

aten = torch.ops.aten
MATRIX_OPS = (aten.convolution, aten.convolution_backward, aten.mm, aten.addmm, aten.bmm, aten.baddbmm)


@dataclass(frozen=True)
class TensorSpec:
    """A tensor without its values."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    def make(self) -> Tensor:
        """Such a tensor, of one value throughout: a processor multiplies that no faster than others."""
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype).fill_(0.1)


@dataclass(frozen=True)
class Call:
    """One call of an operation: `arguments` are its own, tensors as specs and lists as tuples."""

    operation: Any
    arguments: tuple[Any, ...]

    def make(self) -> tuple[Any, ...]:
        """Arguments to call it with."""
        return tuple(value.make() if isinstance(value, TensorSpec) else value for value in self.arguments)

    def __str__(self) -> str:
        tensors = [value for value in self.arguments if isinstance(value, TensorSpec)]
        shapes = " ".join("x".join(map(str, spec.shape)) for spec in tensors if len(spec.shape) > 1)
        name = str(self.operation.overloadpacket).removeprefix("aten.")
        mask = self.arguments[-1] if name == "convolution_backward" else ()
        wanted = "+".join(what for what, asked in zip(("input", "weight"), mask, strict=False) if asked)
        return f"{name}{' to ' + wanted if wanted else ''} {shapes}"


class Recorder(TorchDispatchMode):
    """Counts the convolutions and matrix products that run inside it, as autograd and autocast have made them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Call] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in MATRIX_OPS and not kwargs:
            self.calls[Call(func, tuple(map(_without_values, args)))] += 1
        return func(*args, **(kwargs or {}))


def _without_values(value: Any) -> Any:
    if isinstance(value, Tensor):
        return TensorSpec(tuple(value.shape), value.stride(), value.dtype)
    return tuple(value) if isinstance(value, list) else value


def flops(step: Callable[[], object]) -> int:
    """Floating-point operations of a step's convolutions and matrix products, a multiply-add counted as two."""
    with FlopCounter() as counter:
        step()
    return counter.total


def record(step: Callable[[], object]) -> tuple[Counter[Call], int]:
    """How often a step makes each distinct call, and its floating-point operations."""
    with Recorder() as recorder:
        work = flops(step)
    return recorder.calls, work


class Ceiling:
    """A step's calls ready to be timed one by one, each in the layout that was quickest in a trial."""

    def __init__(self, calls: Counter[Call]) -> None:
        self.counts = list(calls.values())
        self.works = [_quickest(call) for call in calls]
        self.names = [str(call) for call in calls]
        self.times: list[list[float]] = [[] for _ in calls]
        """Seconds of one call, for each distinct call and each `measure`."""

    def measure(self) -> float:
        """Seconds that all of the step's calls take, each called twice and timed the second time, in warm caches."""
        for work, times in zip(self.works, self.times, strict=True):
            work()
            times.append(seconds(work))
        return sum(count * times[-1] for count, times in zip(self.counts, self.times, strict=True))

    def slowest(self, how_many: int) -> list[tuple[str, int, float, float]]:
        """Calls by the time they take in a step: name, calls a step, seconds of one, GFLOP/s."""
        medians = [statistics.median(times) for times in self.times]
        order = sorted(range(len(medians)), key=lambda i: -self.counts[i] * medians[i])[:how_many]
        return [(self.names[i], self.counts[i], medians[i], flops(self.works[i]) / medians[i] / 1e9) for i in order]


def _quickest(call: Call) -> Callable[[], object]:
    """The call in the layout of the step, with all operands contiguous, or with all maps channels_last."""

    recorded = call.make()

    def bound(convert: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        arguments = tuple(convert(value) if isinstance(value, Tensor) else value for value in recorded)
        return lambda: call.operation(*arguments)

    layouts = [lambda x: x, torch.Tensor.contiguous, _channels_last]
    if "convolution" not in str(call.operation):
        layouts.pop()  # channels_last is a layout of maps
    candidates = [bound(layout) for layout in layouts]
    trials = [min(seconds(candidate), seconds(candidate)) for candidate in candidates]
    return candidates[trials.index(min(trials))]


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def big_product_gflops(dtype: torch.dtype, side: int) -> float:
    """GFLOP/s of a product of two square matrices on the CPU: the median of five."""
    a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
    torch.mm(a, b)
    return 2 * side**3 / statistics.median(seconds(lambda: torch.mm(a, b)) for _ in range(5)) / 1e9
