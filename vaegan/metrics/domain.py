"""The `domain` extractor: a small classifier trained on the real training images, for images ImageNet doesn't know."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cluster.errors import UserError
from vaegan.classifier import SmallCNN, Task, fit, fixed_seed, random_batches
from vaegan.metrics.extractor import Extractor, state_sha256
from vaegan.shards import Images

STEPS = 400
BATCH_SIZE = 64
LEARNING_RATE = 1e-3


def domain_extractor(
    real_train: Images, task: Task, *, seed: int = 0, steps: int = STEPS, device: str = "cpu"
) -> Extractor:
    """SmallCNN after 400 updates of 64 images: half a minute on a CPU core at 64 px. Deterministic in images and seed.

    It sees what separates the classes and little else, and it has seen the images it was trained on: real images it has
    not seen look farther away than they are. Give the floor held-out images (`--held-out-split`).

    Args:
        real_train: the real training split, N >= 1; images that nobody labelled are left out.
        task: multilabel networks give no probabilities, for their classes don't exclude each other.

    Raises:
        UserError: one class only, so that there is nothing to learn.
    """
    real_train = real_train.labelled_only()
    if not np.ptp(real_train.labels, axis=0).any():
        raise UserError(
            f"the domain extractor learns to tell classes apart, but all {len(real_train)} real images have the same "
            "labels; take an inception or torchvision:ARCH extractor"
        )
    height, width, channels = real_train.pixels.shape[1:]
    with fixed_seed(seed):
        network = SmallCNN(channels, real_train.labels.shape[1])
    batches = random_batches(real_train.pixels, real_train.labels, batch_size=BATCH_SIZE, seed=seed)
    fit(network, batches, task=task, steps=steps, learning_rate=LEARNING_RATE, seed=seed)
    sha256 = state_sha256(network.state_dict())
    network.to(device).requires_grad_(False)

    def extract(batch: Tensor) -> tuple[Tensor, Tensor | None]:
        x = (batch.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        features = network.features(x)
        return features, network.head(features) if task == "multiclass" else None

    return Extractor(
        name="domain CNN",
        layer="pooled features",
        weights_sha256=sha256,
        resize=f"none ({height}x{width} as stored)",
        dim=network.num_features,
        network=extract,
        device=device,
        trained_on_reference=True,
    )
