"""A split in memory where it fits, else as a stream; both answer to the same few questions."""

import dataclasses
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np

from cluster.errors import UserError
from vaegan.reading.balance import BalancedOrder
from vaegan.reading.stream import ReadingConfig, Rows, ShardReader, marked_labels
from vaegan.shards import Images, read_manifest, read_split, split_info

TrainingImages = Images | ShardReader
"""Both have a length, `labels` (zeros where there is none), `has_label`, `patient_id` and `take`."""


def open_split(dataset: Path, split: str, config: ReadingConfig) -> TrainingImages:
    """A split in memory if its pixels fit into `config.memory_gb`, else as files to stream.

    Raises:
        UserError: no such dataset or split, or a file of it is missing or damaged.
    """
    manifest, info = read_manifest(dataset), split_info(dataset, split)
    size = info.num_images * manifest.height * manifest.width * manifest.channels
    return read_split(dataset, split) if size <= config.memory_gb * 2**30 else ShardReader(dataset, split, config)


def num_unlabelled(images: TrainingImages) -> int:
    """How many of them have no label; reads nothing."""
    return int((~images.has_label).sum()) if isinstance(images, Images) else images.num_unlabelled


def with_labelled(images: TrainingImages, labelled: np.ndarray) -> TrainingImages:
    """The same images, as if but those that `labelled` (N,) says had no label."""
    if isinstance(images, ShardReader):
        return images.with_labelled(labelled)
    return dataclasses.replace(images, labels=images.labels * labelled[:, None], labelled=labelled)


def order_name(images: TrainingImages) -> str:
    """What must be equal for two runs of one seed to see images in the same order, in words."""
    if isinstance(images, Images):
        return "permuted"
    return f"streamed, {images.window_rows} rows in a window, {images.files_at_once} files at once"


def files_sha256(images: TrainingImages) -> str | None:
    """A hash of what a stream holds, which takes no reading; None for images in memory."""
    return None if isinstance(images, Images) else images.files_sha256


def pixel_blocks(images: TrainingImages) -> Iterator[np.ndarray]:
    """All pixels in stored order, a block at a time."""
    return iter([images.pixels]) if isinstance(images, Images) else images.blocks()


def first_of_each_class(images: TrainingImages, number: int) -> list[np.ndarray]:
    """The first `number` rows of each class."""
    if isinstance(images, ShardReader):
        return images.first_of_each_class(number)
    return [np.flatnonzero(column)[:number] for column in images.labels.T]


def check_balance(images: TrainingImages) -> None:
    """Raise a `UserError` where classes can't be drawn equally often."""
    if isinstance(images, ShardReader):
        size = len(images) * int(np.prod(images.shape)) / 2**30
        raise UserError(
            "balance_classes needs the training images in memory, since a stream comes in the order of its files: "
            f"set reading.memory_gb to {size:.2g} or more, or leave balance_classes out"
        )
    if count := num_unlabelled(images):
        raise UserError(
            f"balance_classes needs the class of every image, and {count} of {len(images)} have no label: leave it out"
        )
    if not images.labels.shape[1]:
        raise UserError("balance_classes needs classes, and the dataset has none: leave it out")


def shuffled(
    images: TrainingImages,
    *,
    seed: int,
    batch_size: int,
    start: int,
    stop: int,
    rank: int = 0,
    world_size: int = 1,
    balanced: bool = False,
) -> Generator[Rows, None, None]:
    """One worker's part of every batch from step `start` to before `stop`; see `ShardReader.batches`.

    From memory, each epoch is a permutation from (seed, epoch), its incomplete last batch dropped, and a batch's rows
    are dealt to the workers in equal runs: N workers see what one does. Balanced, the order is that of `BalancedOrder`.

    Raises:
        UserError: balanced, and `check_balance` says that it can't be.
    """
    share = batch_size // world_size
    if balanced:
        check_balance(images)
        assert isinstance(images, Images)
        balance = BalancedOrder(images.labels, seed=seed, batch_size=batch_size)
        for step in range(start, stop):
            rows = balance.batch(step)[rank * share : (rank + 1) * share]
            yield images.pixels[rows], images.labels[rows]  # all of them have one
        return
    if isinstance(images, ShardReader):
        yield from images.batches(
            seed=seed, batch_size=batch_size, start=start, stop=stop, rank=rank, world_size=world_size
        )
        return
    labels = marked_labels(images)
    steps_per_epoch = len(images) // batch_size
    epoch = -1
    for step in range(start, stop):
        if step // steps_per_epoch != epoch:
            epoch = step // steps_per_epoch
            order = np.random.default_rng([seed, epoch]).permutation(len(images))
        at = step % steps_per_epoch * batch_size + rank * share
        rows = order[at : at + share]
        yield images.pixels[rows], labels[rows]
