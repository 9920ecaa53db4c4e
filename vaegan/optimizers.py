"""How weights move: one optimiser a network, and the moving average of the decoder."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vaegan.networks import Networks


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How the three networks' weights move."""

    name: Literal["adam", "rmsprop"] = "adam"
    """The paper uses RMSProp."""
    learning_rate: float = 2e-4
    """Of encoder and decoder, per update."""
    discriminator_learning_rate: float | None = None
    """Of the discriminator, per update, if it differs (two time scales, Heusel et al. 2017)."""
    adam_beta1: float = 0.5
    """Adam's decay of the first moment per update, 0 to 1; 0.5 is the custom for GANs."""

    epsilon: float = 1e-8
    """Added to the root of the second moment, in the gradient's unit: a gradient below it moves a weight by less than
    the learning rate, rounding errors hardly at all."""
    schedule: Literal["constant", "cosine"] = "constant"
    """`cosine` lets learning rates fall along half a cosine over total_images (Loshchilov & Hutter 2017)."""
    final_rate: float = 0.0
    """Where `cosine` ends, as a share of the learning rates."""
    warmup_images: int = 0
    """Images over which learning rates rise from 0 in a straight line (Goyal et al. 2017), times the schedule."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "discriminator_learning_rate", "epsilon"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"optimizer.{name} is {value}: expected more than 0")
        if not 0 <= self.adam_beta1 < 1:
            raise ValueError(f"optimizer.adam_beta1 is {self.adam_beta1}: expected 0 or more, and less than 1")
        if not 0 <= self.final_rate < 1:
            raise ValueError(f"optimizer.final_rate is {self.final_rate}: expected 0 or more, and less than 1")
        if self.final_rate and self.schedule == "constant":
            raise ValueError("optimizer.final_rate is where schedule cosine ends, and optimizer.schedule is constant")
        if self.warmup_images < 0:
            raise ValueError(f"optimizer.warmup_images is {self.warmup_images}: expected 0 or more")

    @property
    def varies(self) -> bool:
        """Whether learning rates differ between steps."""
        return self.schedule != "constant" or self.warmup_images > 0

    def rate_factor(self, images_seen: int, batch_size: int, total_images: int) -> float:
        """What the learning rates of the step after `images_seen` images are multiplied by, 0 to 1.

        A function of images seen, so that a run may stop, resume and go back anywhere.
        """
        factor = 1.0
        if self.schedule == "cosine":  # Loshchilov & Hutter 2017, Eq. 5, without restarts
            fall = 0.5 * (1 + math.cos(math.pi * images_seen / total_images))
            factor = self.final_rate + (1 - self.final_rate) * fall
        return factor * min(1.0, (images_seen + batch_size) / max(self.warmup_images, 1))


class Optimizers:
    """One optimiser a network, stepped together once all gradients exist."""

    def __init__(self, networks: Networks, config: OptimizerConfig) -> None:
        def build(name: str, network: nn.Module) -> torch.optim.Optimizer:
            rate = config.learning_rate
            if name == "discriminator" and config.discriminator_learning_rate is not None:
                rate = config.discriminator_learning_rate
            if config.name == "rmsprop":
                # torch has no fused RMSprop; foreach is one kernel per operation instead of one per tensor, on a GPU
                foreach = next(network.parameters()).is_cuda
                return torch.optim.RMSprop(network.parameters(), lr=rate, eps=config.epsilon, foreach=foreach)
            betas = (config.adam_beta1, 0.999)
            return torch.optim.Adam(network.parameters(), lr=rate, betas=betas, eps=config.epsilon, fused=True)

        self.by_name = {name: build(name, network) for name, network in networks.present().items()}
        self.parameters: dict[str, list[Tensor]] = {
            name: list(network.parameters()) for name, network in networks.present().items()
        }
        self._rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in self.by_name.items()}

    def scale_rates(self, factor: float) -> None:
        """Set every learning rate to `factor` times the configured one."""
        for name, optimizer in self.by_name.items():
            optimizer.param_groups[0]["lr"] = self._rates[name] * factor

    def step(self, gradients: Mapping[str, list[Tensor]]) -> None:
        """Give every parameter its gradient and step every optimiser."""
        for name, optimizer in self.by_name.items():
            for parameter, gradient in zip(self.parameters[name], gradients[name], strict=True):
                parameter.grad = _laid_out_as(parameter, gradient)
            optimizer.step()
            for parameter in self.parameters[name]:
                parameter.grad = None  # else two sets of gradients live side by side in the next step

    def tensors(self) -> dict[str, Tensor]:
        """The optimisers' own state, by name; empty before the first step."""
        return {
            f"{name}.{number}.{key}": torch.as_tensor(value)
            for name, optimizer in self.by_name.items()
            for number, state in optimizer.state_dict()["state"].items()
            for key, value in state.items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` returned, copied.

        Raises:
            KeyError, RuntimeError, ValueError: it is of other networks or of another optimiser.
        """
        for name, optimizer in self.by_name.items():
            states: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                network, number, part = key.split(".", 2)
                if network == name:
                    parameter = self.parameters[name][int(number)]
                    own = _laid_out_as(parameter, value) if value.shape == parameter.shape else value
                    states.setdefault(int(number), {})[part] = own.clone(memory_format=torch.preserve_format)
            optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def _laid_out_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    """The tensor in the parameter's memory layout.

    torch's fused optimisers walk through parameter, gradient and moments by address: where one of them is channels_last
    and another is not, a weight silently gets another weight's gradient (seen in torch 2.14 on the CPU).
    """
    if tensor.stride() == parameter.stride():
        return tensor
    return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)


class DecoderAverage:
    """Exponential moving average of the decoder's weights: what samples are drawn from.

    `half_life_images`: images after which an old weight counts half, so that it means the same for any batch size;
    during the first ones it is a tenth of the images seen, so that the random start is forgotten (Karras et al. 2020,
    ramp-up). 0 keeps no average.
    """

    def __init__(self, decoder: nn.Module, half_life_images: int) -> None:
        self.half_life_images = half_life_images
        self.decoder = copy.deepcopy(decoder).eval().requires_grad_(False) if half_life_images else decoder

    @torch.no_grad()
    def update(self, decoder: nn.Module, images_seen: int, batch_size: int) -> None:
        """Move the average towards `decoder`, after a step of `batch_size` images."""
        if not self.half_life_images:
            return
        half_life = min(self.half_life_images, max(images_seen, batch_size) / 10)
        keep = 0.5 ** (batch_size / half_life)
        torch._foreach_lerp_(list(self.decoder.parameters()), list(decoder.parameters()), 1 - keep)
        for kept, buffer in zip(self.decoder.buffers(), decoder.buffers(), strict=True):
            kept.copy_(buffer)
