"""`ImageSource`: images to measure, what is known of them without decoding, and their pixels block by block."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vaegan.metrics.sources.blocks import Block, ResizedBlock, RgbBlock, Shape
from vaegan.shards import Images

UNSPLIT = "train"
"""What the one split of a source without splits is called, as the commands' defaults call it."""

Progress = Callable[[int, int], None]
"""Images done, images in all."""


def no_progress(_done: int, _total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True, eq=False)
class ImageSource:
    """N images whose pixels are read when they are needed."""

    name: str
    """Where they are, for people."""
    shape: Shape
    """(H, W, C), C 1 or 3, the same for all."""
    blocks: tuple[Block, ...]
    labels: np.ndarray
    """uint8 (N, K), multi-hot; K is 0 where there are no classes, a row of zeros an image without a known class, or one
    that nobody labelled: see `has_label`."""
    classes: tuple[str, ...]
    patient_id: np.ndarray
    """str (N,); "" where the patient is not known."""
    image_id: np.ndarray
    """str (N,)."""
    labelled: np.ndarray | None = None
    """Whether somebody labelled an image, bool (N,); None where all are."""
    rejected: tuple[tuple[str, str], ...] = ()
    """Name and reason of each file that is no readable image; these are not among the N."""

    def __len__(self) -> int:
        return len(self.image_id)

    @property
    def has_label(self) -> np.ndarray:
        """`labelled` as an array in any case, bool (N,)."""
        return np.ones(len(self), dtype=bool) if self.labelled is None else self.labelled

    @property
    def sha256(self) -> str:
        """Hash of images, labels and patients: of all that a metric may depend on."""
        digest = hashlib.sha256(f"{self.shape} {self.classes} {[block.sha256 for block in self.blocks]}".encode())
        digest.update(np.ascontiguousarray(self.labels).data)
        digest.update("\n".join(map(str, self.patient_id)).encode())
        if self.labelled is not None:
            digest.update(self.labelled.tobytes())
        return digest.hexdigest()

    @property
    def starts(self) -> np.ndarray:
        """(number of blocks + 1,): the first row of each block, and N."""
        return np.concatenate([[0], np.cumsum([block.count for block in self.blocks])]).astype(np.int64)

    def pixels(self, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        """uint8 (len(rows), H, W, C) of some rows, in that order; only their blocks are read."""
        rows = np.asarray(rows, np.int64)
        result = np.empty((len(rows), *self.shape), np.uint8)
        owner = np.searchsorted(self.starts, rows, side="right") - 1
        for index in np.unique(owner):
            here = owner == index
            result[here] = self.blocks[index].read(rows[here] - self.starts[index])
        return result

    def images(self, rows: np.ndarray) -> Images:
        """Some images with what is known of them, in memory."""
        patients, names = list(self.patient_id[rows]), list(self.image_id[rows])
        images = Images.real(self.pixels(rows), self.labels[rows], patients, names)
        return images if self.labelled is None else replace(images, labelled=self.labelled[rows])

    def resized(self, size: int | None) -> ImageSource:
        """The same images as squares of `size` pixels: the centre, antialiased. None, or that size, changes nothing."""
        if size is None or self.shape[:2] == (size, size):
            return self
        blocks = tuple(ResizedBlock.of(block, size) for block in self.blocks)
        return replace(self, blocks=blocks, shape=(size, size, self.shape[2]))

    def as_rgb(self) -> ImageSource:
        """The same images with three channels: beside colour ones, grey ones repeat theirs."""
        if self.shape[2] == 3:
            return self
        return replace(self, blocks=tuple(map(RgbBlock.of, self.blocks)), shape=(*self.shape[:2], 3))
