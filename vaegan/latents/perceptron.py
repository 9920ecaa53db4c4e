"""Small dense networks: fitted with PyTorch, evaluated row by row in NumPy so that an address is an address."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from vaegan.latents.gaussian import product
from vaegan.latents.posterior import FIT_SEED

HIDDEN = 64
BATCH = 256
LEARNING_RATE = 5e-3
WEIGHT_DECAY = 1e-2
MAX_STEPS = 1500
CHECK_STEPS = 50
PATIENCE = 6
"""Checks in a row without a better value after which a fit ends."""


@dataclass(frozen=True)
class Perceptron:
    """Dense layers with tanh between them: weights (O, I) and biases (O,)."""

    layers: tuple[tuple[np.ndarray, np.ndarray], ...]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """x (N, I) -> (N, O), float64; each row the same in any company."""
        for i, (weight, bias) in enumerate(self.layers):
            x = product(np.tanh(x) if i else x, weight) + bias
        return x

    def tensors(self) -> dict[str, np.ndarray]:
        return {f"{i}.{name}": v for i, layer in enumerate(self.layers) for name, v in zip("wb", layer, strict=True)}

    @staticmethod
    def from_tensors(tensors: Mapping[str, np.ndarray]) -> "Perceptron":
        return Perceptron(tuple((tensors[f"{i}.w"], tensors[f"{i}.b"]) for i in range(len(tensors) // 2)))


Weights = list[tuple[Tensor, Tensor]]


def initial(inputs: int, num_labels: int, outputs: int, generator: torch.Generator) -> Weights:
    """Weights of two hidden layers, made to be trained; the last layer is 0, and so is what they give at first.

    Labels come after the inputs. Their weights are 0 as well: a label that no image has stays without effect.
    """
    sizes = [inputs + num_labels, HIDDEN, HIDDEN, outputs]
    layers = []
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        scale = 0.0 if i == len(sizes) - 2 else 1 / math.sqrt(fan_in)
        weight = scale * torch.randn(fan_out, fan_in, generator=generator)
        if i == 0:
            weight[:, inputs:] = 0
        layers.append((weight.requires_grad_(), torch.zeros(fan_out, requires_grad=True)))
    return layers


def forward(weights: Weights, x: Tensor) -> Tensor:
    """What `Perceptron` gives, with gradients."""
    for i, (weight, bias) in enumerate(weights):
        x = torch.nn.functional.linear(torch.tanh(x) if i else x, weight, bias)
    return x


def frozen(weights: Weights) -> Perceptron:
    """The network of trained weights."""
    return Perceptron(tuple((weight.detach().numpy().copy(), bias.detach().numpy().copy()) for weight, bias in weights))


def train(
    networks: Sequence[Weights],
    num_images: int,
    loss: Callable[[np.ndarray, torch.Generator], Tensor],
) -> None:
    """Minimise a loss in place, and take back what came after its best value on a tenth that is held out.

    Adam with decoupled weight decay (Loshchilov & Hutter 2019), its rate falling evenly to 0. Every number drawn comes
    from `FIT_SEED`.

    Args:
        num_images: images there are; at least 2.
        loss: mean over rows, of which it is given the numbers, with noise of its own from a generator.
    """
    order = np.random.default_rng(FIT_SEED).permutation(num_images)
    held_out, fitted = np.split(order, [max(1, num_images // 10)])
    judged = np.tile(held_out, -(-2 * BATCH // len(held_out)))  # few images, then more draws of each
    tensors = [tensor for network in networks for layer in network for tensor in layer]
    optimizer = torch.optim.AdamW(tensors, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    best, kept, stale = math.inf, [tensor.detach().clone() for tensor in tensors], 0
    rng, noise = np.random.default_rng([FIT_SEED, 1]), torch.Generator().manual_seed(FIT_SEED + 1)
    for step in range(MAX_STEPS + 1):
        if step % CHECK_STEPS == 0:
            with torch.no_grad():
                value = float(loss(judged, torch.Generator().manual_seed(FIT_SEED)))  # the same draws each time
            stale = 0 if value < best else stale + 1
            if value < best:
                best, kept = value, [tensor.detach().clone() for tensor in tensors]
            if stale == PATIENCE:
                break
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / MAX_STEPS)
        optimizer.zero_grad(set_to_none=True)
        loss(rng.choice(fitted, BATCH), noise).backward()
        torch.nn.utils.clip_grad_norm_(tensors, 10.0)
        optimizer.step()
    with torch.no_grad():
        for tensor, value_kept in zip(tensors, kept, strict=True):
            tensor.copy_(value_kept)
