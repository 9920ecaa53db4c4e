"""Train a classifier on a dataset's films and, in each batch, on synthetic ones that a running service makes meanwhile.

    python examples/train_on_stream.py --data DATASET --url http://127.0.0.1:8000 --model NAME

It prints the test AUROC beside that of real films alone, with the same initial weights, number of steps and batch size.
With --shards, a dataset that `vaegan.sample` wrote with the same model and seed, it trains a third time, from those
files: an address is an image wherever it is made, so the batches are the same and the predictions are equal bit for bit
(service and shards made on the same kind of machine, training on the CPU). Exit status 1 if they are not.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cluster.cli import run_command
from cluster.errors import UserError
from downstream.classifiers import build_network
from downstream.scores import score
from downstream.tasks import Data
from serve.client.dataset import SyntheticStream
from serve.client.requests import Classes, Order
from vaegan.classifier import fit, predict, random_batches
from vaegan.shards import Images, read_split
from vaegan.tensors import to_tensor

Batches = Iterator[tuple[Tensor, Tensor]]
"""x (B, C, H, W) float32 in [-1, 1], y (B, K) float32."""


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """Train a classifier on real films and a live stream of synthetic ones, and compare it with real films alone."""

    data: Path
    """Prepared dataset: trains on its train split and reports on test."""
    url: str
    """Where the service is; its key, if it wants one, is taken from AUGRAY_API_KEY."""
    model: str
    """Name of the service's model; its classes and size are those of the dataset."""
    version: str | None = None
    """Version of the model; the newest by default."""
    mix: tuple[str, ...] = ()
    """Images of each class in the sum of all, such as NORMAL=1 PNEUMONIA=3; equally many of each by default."""
    shards: Path | None = None
    """Dataset of `vaegan.sample` that holds the same addresses: train from it too, and compare."""
    steps: int = 400
    """Optimiser steps, the same for every arm."""
    batch_size: int = 64
    """Images of one step."""
    synthetic_per_batch: int = 32
    """How many of them are synthetic."""
    learning_rate: float = 1e-3
    seed: int = 0
    """Of the classifier: initial weights and order of the real films."""
    image_seed: int = 0
    """Of the synthetic images' addresses."""
    latent: str = "prior"
    """Source of z: prior, or mixture where the model has one."""
    truncation: float = 1.0
    """Spread of the latents."""

    def __post_init__(self) -> None:
        if not 0 < self.synthetic_per_batch < self.batch_size or self.steps < 1:
            raise ValueError(
                f"steps {self.steps}, synthetic_per_batch {self.synthetic_per_batch}, batch_size {self.batch_size}: "
                "expected at least one step and, in each batch, at least one image of either kind"
            )


@dataclass(frozen=True)
class Arm:
    """One training: probabilities (N, K) on the test split and their mean AUROC."""

    name: str
    probabilities: np.ndarray
    auroc: float


def compare(config: StreamConfig) -> list[Arm]:
    """Train and ask every arm: real films alone, with the stream, and with the shards if there are any.

    Raises:
        UserError: model and dataset don't fit, or the shards lack an address.
        ServiceError: the service refuses, or stays away.
    """
    torch.set_num_threads(1)  # with more, a sum's order, and so its last bit, may depend on how many are free
    data = Data.read(config.data)
    stream = SyntheticStream(
        config.url,
        config.model,
        parse_mix(config.mix),
        seed=config.image_seed,
        count=config.steps * config.synthetic_per_batch,
        version=config.version,
        latent=config.latent,
        truncation=config.truncation,
        batch_size=config.synthetic_per_batch,
    )
    about = data.manifest
    if (stream.classes, stream.image_shape) != (about.classes, (about.channels, about.height, about.width)):
        raise UserError(
            f"model {stream.model}/{stream.version} makes {stream.classes}, {stream.image_shape} and {config.data} "
            f"holds {about.classes}, {(about.channels, about.height, about.width)}; name a model of the same"
        )
    rows = None if config.shards is None else rows_of(config, stream, read_split(config.shards, "train"))
    arms = [
        fitted("real", config, data, real_batches(config, data, config.batch_size)),
        fitted("real + stream", config, data, both(real_part(config, data), iter(stream))),
    ]
    if rows is not None:
        arms.append(fitted("real + shards", config, data, both(real_part(config, data), from_shards(config, rows))))
    return arms


def parse_mix(words: Sequence[str]) -> dict[Classes, int] | None:
    """NORMAL=1 PNEUMONIA=3 as a mapping; co-occurring classes are joined by +. None for no words.

    Raises:
        UserError: a word is of another form.
    """
    mix: dict[Classes, int] = {}
    for word in words:
        names, _, part = word.rpartition("=")
        if not names or not part.isdecimal():
            raise UserError(f"{word!r} in the mix, expected CLASS=NUMBER, such as NORMAL=1; write every class so")
        mix[tuple(names.split("+"))] = int(part)
    return mix or None


def fitted(name: str, config: StreamConfig, data: Data, batches: Batches) -> Arm:
    """Train the ablation's small network on `batches` and score it."""
    channels, num_classes = data.manifest.channels, len(data.manifest.classes)
    network = build_network("small_cnn", channels=channels, num_outputs=num_classes, seed=config.seed)
    fit(network, batches, task=data.task, steps=config.steps, learning_rate=config.learning_rate, seed=config.seed)
    test, val = (predict(network, images.pixels, data.task) for images in (data.test, data.val))
    scores = score(data.test.labels, test, data.val.labels, val, task=data.task, classes=data.manifest.classes)
    return Arm(name, test, scores["auroc"])


def real_batches(config: StreamConfig, data: Data, size: int) -> Batches:
    return random_batches(data.train.pixels, data.train.labels, batch_size=size, seed=config.seed)


def real_part(config: StreamConfig, data: Data) -> Batches:
    return real_batches(config, data, config.batch_size - config.synthetic_per_batch)


def both(real: Batches, synthetic: Batches) -> Batches:
    """Real rows, then synthetic ones, in each batch."""
    for (x, y), (made_x, made_y) in zip(real, synthetic, strict=False):
        yield torch.cat([x, made_x]), torch.cat([y, made_y])


def rows_of(config: StreamConfig, stream: SyntheticStream, images: Images) -> Images:
    """The stream's images from a dataset, in the stream's order.

    Raises:
        UserError: the dataset lacks one.
    """
    row_of = {str(address): row for row, address in enumerate(images.image_id)}
    rows, last = [], 0
    for classes, index in stream.mix.addresses(config.steps * config.synthetic_per_batch):
        order = Order(
            model=stream.model, classes=classes, count=1, seed=config.image_seed, start=index,
            latent=config.latent, truncation=config.truncation,
        )  # fmt: skip
        (address,) = order.addresses(stream.classes, stream.version)
        rows.append(row_of.get(address, -1))
        last = max(last, index)
    if -1 in rows:
        raise UserError(
            f"{config.shards} lacks {rows.count(-1)} of the {len(rows)} images of this training, expected all; "
            f"write it with: python -m vaegan.sample --model MODEL --seed {config.image_seed} --count {last + 1} "
            f"--latent {config.latent} --truncation {config.truncation} --out DATASET"
        )
    return images.take(rows)


def from_shards(config: StreamConfig, images: Images) -> Batches:
    """Rows in order, as batches."""
    for at in range(0, len(images), config.synthetic_per_batch):
        rows = slice(at, at + config.synthetic_per_batch)
        yield to_tensor(images.pixels[rows]), torch.from_numpy(images.labels[rows].astype(np.float32))


def report(config: StreamConfig) -> int:
    """The command: train, and print what came out."""
    real, stream, *shards = compare(config)
    num_synthetic = config.steps * config.synthetic_per_batch
    print(f"{config.steps} steps of {config.batch_size} images; {num_synthetic} synthetic images of {config.model}")
    print(f"{real.name:14} test AUROC {real.auroc:.4f}")
    for arm in (stream, *shards):
        print(f"{arm.name:14} test AUROC {arm.auroc:.4f}, gain {arm.auroc - real.auroc:+.4f}")
    if not shards:
        return 0
    equal = np.array_equal(stream.probabilities, shards[0].probabilities)
    apart = np.abs(stream.probabilities - shards[0].probabilities).max()
    print("stream and shards: predictions equal bit for bit" if equal else f"stream and shards differ by {apart:.2g}")
    return 0 if equal else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: `python examples/train_on_stream.py --data DATASET --url URL --model NAME`."""
    return run_command(StreamConfig, report, prog="python examples/train_on_stream.py", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
