"""A small image classifier, and how any classifier here is fitted and asked.

Three parts use it: the ablation (as a classifier for CPUs), the metrics (the `domain` extractor is one, trained on the
real training split) and the phantom (its difficulty is measured with one).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice, pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaegan.tensors import to_tensor

Task = Literal["multiclass", "multilabel"]
"""multiclass: every image has exactly one class (softmax); multilabel: any number of them (one sigmoid per class)."""


class SmallCNN(nn.Module):
    """Four convolutions with stride 2, a global average, one dense layer.

    Made for one CPU core: 64 px are read at about 1,000 images/s in training. Any input from 16 px on works, since the
    last map is averaged. GroupNorm, so that an image's score does not depend on what shares its batch.

    Args:
        channels: 1 or 3.
        num_outputs: K, the number of classes.
        width: filters of the first convolution, a multiple of 8; the others have 2, 4 and 8 times as many.
    """

    def __init__(self, channels: int, num_outputs: int, width: int = 24) -> None:
        super().__init__()
        if width % 8:
            raise ValueError(f"width ({width}) must be a multiple of 8, the number of groups in each GroupNorm")
        sizes = [channels, width, 2 * width, 4 * width, 8 * width]
        stages: list[nn.Module] = []
        for fan_in, fan_out in pairwise(sizes):
            convolution = nn.Conv2d(fan_in, fan_out, kernel_size=3, stride=2, padding=1, bias=False)
            stages += [convolution, nn.GroupNorm(8, fan_out), nn.ReLU(inplace=True)]
        self.stages = nn.Sequential(*stages)
        self.num_features = sizes[-1]
        self.head = nn.Linear(self.num_features, num_outputs)

    def features(self, x: Tensor) -> Tensor:
        """(N, C, H, W) float32 in [-1, 1] -> (N, D), what the dense layer sees; D = 8 * width."""
        return self.stages(x).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) float32 in [-1, 1] -> logits (N, K)."""
        return self.head(self.features(x))


@contextmanager
def fixed_seed(seed: int) -> Iterator[None]:
    """Torch's random numbers inside the block depend on the seed alone; afterwards they go on as if nothing happened.

    Wrap the building of a network in it: its initial weights are then a function of the seed.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        yield


def classification_loss(logits: Tensor, targets: Tensor, task: Task, class_weight: Tensor | None = None) -> Tensor:
    """Cross-entropy against (soft) targets, averaged over the batch, in nats.

    multiclass: targets (N, K) are probabilities; the term of class k is multiplied by class_weight[k].
    multilabel: targets (N, K) in [0, 1], mean over the K binary terms; class_weight[k] multiplies the term of the
    positives of class k (torch's `pos_weight`).
    """
    if task == "multiclass":
        # Not torch's own `weight`: with class indices it divides by the batch's summed weights, with probabilities it
        # doesn't, and a division by what happens to be in the batch would undo the weighting in part.
        terms = -targets * F.log_softmax(logits, dim=1)
        return (terms if class_weight is None else terms * class_weight).sum(dim=1).mean()
    return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=class_weight)


def random_batches(
    pixels: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    augment: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches: one random order of all rows after the other, cut into batches of equal size.

    Every row is thus seen equally often, give or take one, and a batch is full even where there are fewer rows.

    Args:
        pixels: uint8 (N, H, W, C). labels: (N, K) in [0, 1].
        augment: changes a batch (B, C, H, W) float32 in [-1, 1]; its randomness is torch's own (see `fit`'s seed).

    Yields:
        (B, C, H, W) float32 in [-1, 1] and (B, K) float32.
    """
    if len(pixels) == 0:
        raise ValueError("no images to make batches of")
    order = _endless_order(len(pixels), np.random.default_rng(seed))
    while True:
        rows = np.fromiter(islice(order, batch_size), dtype=np.int64, count=batch_size)
        x = to_tensor(pixels[rows])
        y = torch.from_numpy(labels[rows].astype(np.float32))
        yield (x if augment is None else augment(x)), y


def _endless_order(num_rows: int, rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield from rng.permutation(num_rows)


def fit(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    task: Task,
    steps: int,
    learning_rate: float,
    class_weight: Tensor | None = None,
    seed: int,
    weight_decay: float = 1e-2,
) -> None:
    """Train in place with AdamW; the learning rate rises over the first 5 % of the steps, then falls to 0 as a cosine.

    The result is a function of the network's initial weights, the batches and the seed (dropout, augmentation); the
    caller's random state is left as it was. The network stays on its device and ends in evaluation mode.

    Args:
        batches: pairs (x, targets) as `random_batches` yields them, at least `steps` of them; targets may be soft.
        class_weight: (K,), see `classification_loss`.

    Raises:
        ValueError: the batches ran out, or the loss is no longer a finite number.
    """
    device = next(network.parameters()).device
    weight = None if class_weight is None else class_weight.to(device, torch.float32)
    network.train().to(memory_format=torch.channels_last)  # 1.3 times as fast on a CPU
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_cosine(step, steps))
    done = 0
    with fixed_seed(seed):
        for x, targets in islice(batches, steps):
            x = x.to(device).contiguous(memory_format=torch.channels_last)
            loss = classification_loss(network(x), targets.to(device), task, weight)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
    if done < steps:
        raise ValueError(f"the batches ran out after {done} of {steps} steps; pass an endless iterable")
    if steps and not math.isfinite(loss.item()):
        raise ValueError(
            f"the classifier's loss is {loss.item()} after {steps} steps; lower learning_rate ({learning_rate})"
        )
    network.eval()


def _warm_cosine(step: int, steps: int) -> float:
    warm_up = max(1, steps // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def predict(network: nn.Module, pixels: np.ndarray, task: Task, batch_size: int = 256) -> np.ndarray:
    """Probabilities float32 (N, K) of uint8 (N, H, W, C) images: a softmax for multiclass, sigmoids for multilabel.

    Runs in evaluation mode, whatever mode the network is in, and leaves that mode as it was.
    """
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    activate = torch.sigmoid if task == "multilabel" else lambda logits: logits.softmax(dim=1)
    with torch.inference_mode():
        parts = [
            activate(network(to_tensor(pixels[i : i + batch_size]).to(device)).float()).cpu().numpy()
            for i in range(0, max(1, len(pixels)), batch_size)
        ]
    network.train(was_training)
    return np.concatenate(parts)
