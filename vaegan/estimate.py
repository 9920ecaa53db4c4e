"""What a run will be and cost before it starts: its networks, memory and time, from a few steps on random images."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from vaegan.augment import Augmentation
from vaegan.checkpoint import state_tensors
from vaegan.export import build
from vaegan.optimizers import DecoderAverage, Optimizers
from vaegan.recipe import TrainConfig, choose_dtype
from vaegan.runs import check_enough
from vaegan.shards import Manifest
from vaegan.steps import Batch, train_step

TIMED_STEPS = 3


@dataclass(frozen=True)
class Layer:
    """A layer of a network: its place there, what it is, its output's shape without the batch, its parameters."""

    name: str
    kind: str
    shape: tuple[int, ...] | None
    """None where no step calls it."""
    num_parameters: int


@dataclass(frozen=True)
class Memory:
    """Bytes that one worker holds at once in a step, of what is counted: no library's work space, no images in wait."""

    weights: int
    """Parameters and buffers."""
    gradients: int
    """The step's own and, where they are kept until they are replaced, those of the step before."""
    optimizers: int
    decoder_average: int
    activations: int
    """What the forward pass saves for the backward ones, the batch itself included, each storage once."""
    peak: int | None
    """The most that PyTorch had allocated on the GPU, work space included; None on a CPU, where nobody counts."""

    @property
    def total(self) -> int:
        """Without `peak`, which contains it."""
        return self.weights + self.gradients + self.optimizers + self.decoder_average + self.activations


@dataclass(frozen=True)
class Estimate:
    """What `estimate` found; `text()` is how people read it."""

    config: TrainConfig
    layers: dict[str, list[Layer]]
    """Per network, in the order of the modules."""
    num_parameters: dict[str, int]
    """Per network."""
    num_images: int
    memory: Memory
    checkpoint_bytes: int
    flops: int
    """Floating-point operations of one worker's step, a multiplication and an addition being two: of convolutions and
    matrix products, forward and backward."""
    step_s: float
    """Median time of a step, on this machine."""
    device: str
    dtype: torch.dtype
    threads: int

    @property
    def num_steps(self) -> int:
        return self.config.total_images // self.config.batch_size

    @property
    def num_epochs(self) -> float:
        """Passes over the images; an epoch drops its incomplete last batch."""
        return self.num_steps / (self.num_images // self.config.batch_size)

    @property
    def num_checkpoints(self) -> int:
        """Written in the run; the last image has one whether or not it is a multiple of the interval."""
        return -(-self.config.total_images // self.config.checkpoint_every)

    @property
    def total_s(self) -> float:
        """Of all steps."""
        return self.num_steps * self.step_s

    def text(self) -> str:
        """Tables of the networks, then the run, memory and time, for people."""
        return "\n\n".join([*map(self._network, self.layers), self._run(), self._memory(), self._time()])

    def _network(self, name: str) -> str:
        rows = [(name, "", "output", "parameters")]
        rows += [(each.name, each.kind, _shape(each.shape), f"{each.num_parameters:,}") for each in self.layers[name]]
        return _table([*rows, ("total", "", "", f"{self.num_parameters[name]:,}")])

    def _run(self) -> str:
        config = self.config
        kept = min(config.keep_checkpoints or self.num_checkpoints, self.num_checkpoints)
        return _table(
            [
                ("parameters in all", f"{sum(self.num_parameters.values()):,}"),
                ("training images", f"{self.num_images:,}"),
                ("images seen", f"{config.total_images:,}"),
                ("steps", f"{self.num_steps:,} of {config.batch_size} images"),
                ("epochs", f"{self.num_epochs:,.1f}" + ", classes equally often" * config.balance_classes),
                ("checkpoints", f"{self.num_checkpoints} of {_bytes(self.checkpoint_bytes)}, {kept} kept"),
            ]
        )

    def _memory(self) -> str:
        memory, workers = self.memory, max(self.config.num_workers, 1)
        peak = [] if memory.peak is None else [("peak on this GPU", _bytes(memory.peak))]
        share = self.config.batch_size // workers
        return f"memory of a worker ({workers} in all, {share} images a step each)\n" + _table(
            [
                ("weights", _bytes(memory.weights)),
                ("gradients", _bytes(memory.gradients)),
                ("optimiser state", _bytes(memory.optimizers)),
                ("decoder average", _bytes(memory.decoder_average)),
                ("activations", _bytes(memory.activations)),
                ("together, at least", _bytes(memory.total)),
                *peak,
            ]
        )

    def _time(self) -> str:
        rate = self.config.batch_size / self.step_s
        return (
            f"time, an estimate: {_duration(self.total_s)} for {self.num_steps:,} steps of {self.step_s:.3g} s "
            f"({rate:,.0f} images/s)\n"
            f"  measured over {TIMED_STEPS} steps of one worker on {self.device}, {self.threads} "
            f"thread{'s' * (self.threads > 1)}, {str(self.dtype).removeprefix('torch.')}; "
            f"{self.flops / 1e9:,.1f} GFLOP a step, {self.flops / self.step_s / 1e9:,.0f} GFLOP/s\n"
            "  left out: reading images, validation, sample grids, checkpoints, Ray's start, communication between "
            "workers;\n"
            "  a worker that shares its cores with another is slower"
        )


def estimate(config: TrainConfig, manifest: Manifest, num_images: int, device: torch.device) -> Estimate:
    """Build a run's networks and take a few real steps of one worker on random images; writes nothing.

    Args:
        manifest: tells the images' size and classes.
        num_images: training images that there are.
        device: what a worker computes on; the settings of this process (threads) are those that are measured.

    Raises:
        UserError: networks that don't fit the images, or fewer images than a batch has.
    """
    check_enough(config, num_images)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        rehearsal = _Rehearsal(config, manifest, device)
    layers, activations, flops = rehearsal.watched_step()
    step_s, peak = rehearsal.timed_steps()
    return Estimate(
        config=config,
        layers=layers,
        num_parameters={name: _count(part.parameters()) for name, part in rehearsal.networks.present().items()},
        num_images=num_images,
        memory=rehearsal.memory(activations, peak),
        checkpoint_bytes=rehearsal.checkpoint_bytes(),
        flops=flops,
        step_s=step_s,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU",
        dtype=rehearsal.dtype,
        threads=torch.get_num_threads(),
    )


class _Rehearsal:
    """One worker's networks and its share of a batch, random."""

    def __init__(self, config: TrainConfig, manifest: Manifest, device: torch.device) -> None:
        self.config, self.device = config, device
        self.num_workers = max(config.num_workers, 1)
        self.networks = build(config, manifest).to(device).to(memory_format=torch.channels_last).train()
        self.optimizers = Optimizers(self.networks, config.optimizer)
        self.average = DecoderAverage(self.networks.decoder, config.average_half_life_images)
        self.dtype = choose_dtype(config.precision, device)
        # where the share of augmented images is steered, any but none costs the same
        probability = None if config.augment_target is None else 0.5
        self.augment = Augmentation(strength=config.augment, policy=config.augment_policy, probability=probability)
        share, num_classes = config.batch_size // self.num_workers, len(manifest.classes)
        x = torch.rand(share, manifest.channels, manifest.height, manifest.width) * 2 - 1
        self.x = x.to(device, memory_format=torch.channels_last)
        self.labels = torch.eye(max(num_classes, 1))[torch.arange(share) % max(num_classes, 1), :num_classes].to(device)
        self.num_steps = 0

    def step(self) -> None:
        """One step as `vaegan.loop` takes it."""
        config = self.config
        batch = Batch.draw(
            self.x, self.labels, config.model.latent_dim,
            seed=config.seed, step=self.num_steps, num_workers=self.num_workers,
        )  # fmt: skip
        train_step(
            self.networks, self.optimizers, batch, config.loss,
            beta=config.loss.beta, augment=self.augment, dtype=self.dtype,
        )  # fmt: skip
        self.num_steps += 1
        self.average.update(self.networks.decoder, self.num_steps * config.batch_size, config.batch_size)

    def watched_step(self) -> tuple[dict[str, list[Layer]], int, int]:
        """A step's layers per network, the bytes that it saves for its backward passes, and its FLOPs."""
        own = {tensor.untyped_storage().data_ptr() for tensor in self.networks.state_dict().values()}
        saved: dict[int, torch.UntypedStorage] = {}  # held to the end, so that no address is given out twice

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                saved[storage.data_ptr()] = storage
            return tensor.detach()  # the tensor itself would hold the graph that holds it

        shapes: dict[nn.Module, tuple[int, ...]] = {}
        hooks = [module.register_forward_hook(_shape_into(shapes)) for module in self.networks.modules()]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), FlopCounter() as flops:
            self.step()
        for hook in hooks:
            hook.remove()
        layers = {name: _layers(network, shapes) for name, network in self.networks.present().items()}
        return layers, sum(storage.nbytes() for storage in saved.values()), flops.total

    def timed_steps(self) -> tuple[float, int | None]:
        """The median time of a step in seconds and, on a GPU, the most bytes that PyTorch had allocated meanwhile."""
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        times = []
        for _ in range(TIMED_STEPS):
            started_s = time.perf_counter()
            self.step()
            if on_gpu:
                torch.cuda.synchronize(self.device)
            times.append(time.perf_counter() - started_s)
        return statistics.median(times), torch.cuda.max_memory_allocated(self.device) if on_gpu else None

    def memory(self, activations: int, peak: int | None) -> Memory:
        """What there is after a step."""
        parameters = list(self.networks.parameters())
        averaged = self.average.decoder.state_dict().values() if self.average.half_life_images else []
        kept = [parameter.grad for parameter in parameters if parameter.grad is not None]
        return Memory(
            weights=_size([*parameters, *self.networks.buffers()]),
            gradients=_size(parameters) + _size(kept),
            optimizers=_size(self.optimizers.tensors().values()),
            decoder_average=_size(averaged),
            activations=activations,
            peak=peak,
        )

    def checkpoint_bytes(self) -> int:
        """Of a checkpoint's tensors; their names take some kilobytes more."""
        return _size(state_tensors(self.networks, self.average, self.optimizers).values())


class FlopCounter(TorchDispatchMode):
    """Counts floating-point operations by torch's own formulas, forward and backward.

    torch's FlopCounterMode also tells modules apart, with hooks that `autograd.grad` refuses (torch 2.14).
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def _shape_into(shapes: dict[nn.Module, tuple[int, ...]]) -> Any:
    """A forward hook that notes the shape of a module's first output, without the batch."""

    def hook(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            shapes.setdefault(module, tuple(output.shape[1:]))

    return hook


def _layers(network: nn.Module, shapes: dict[nn.Module, tuple[int, ...]]) -> list[Layer]:
    """The modules of a network that compute something themselves."""
    layers = []
    for name, module in network.named_modules():
        if "parametrizations" in name.split(".") or isinstance(module, nn.Identity):
            continue  # a parametrization's tensors count where its layer does
        own = list(module.parameters(recurse=parametrize.is_parametrized(module)))
        if own or not list(module.children()):
            layers.append(Layer(name or "itself", _kind(module), shapes.get(module), _count(own)))
    return layers


def _kind(module: nn.Module) -> str:
    name = type(module).__name__.removeprefix("Parametrized")
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        return f"{name} {module.kernel_size[0]}x{module.kernel_size[1]} stride {module.stride[0]}"
    return name


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "not called" if shape is None else " x ".join(map(str, shape)) or "1"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


def _table(rows: list[tuple[str, ...]]) -> str:
    """Rows in columns two spaces apart: the first to the left, the last to the right, if there are more than two."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        *first, last = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join([*first, row[-1].rjust(widths[-1]) if len(row) > 2 else last]).rstrip())
    return "\n".join(lines)
