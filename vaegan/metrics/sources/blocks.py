"""Where the pixels of images to measure come from, a few hundred at a time: arrays, our Parquet, image files, others'.

A block knows its count and the hash of its content before a pixel is decoded, and goes to another process with pickle.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import UserError
from cluster.storage import text_sha256
from vaegan.images import decode, resize
from vaegan.shards import pixels_of, readable

BLOCK_BYTES = 16 * 2**20
"""Of pixels in a block: a few of them wait decoded in memory while the network computes."""
MIN_BLOCK, MAX_BLOCK = 64, 256
"""Images in a block: enough for a few batches; few enough to share 5,000 images evenly among workers, and to show
progress and keep features before half a minute of a large network on one core is over."""

Shape = tuple[int, int, int]
"""(H, W, C)."""


def block_size(shape: Shape) -> int:
    """Images per block."""
    return int(np.clip(BLOCK_BYTES // int(np.prod(shape)), MIN_BLOCK, MAX_BLOCK))


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """Some images of a source, one after another."""

    sha256: str
    """Of everything that decides the pixels: equal for equal content read in the same way."""
    count: int

    def read(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Pixels, uint8 (count, H, W, C), or those of some rows in that order.

        Raises:
            UserError: the file is gone, damaged or another one than when the source was opened.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, eq=False)
class ArrayBlock(Block):
    """Images in memory."""

    pixels: np.ndarray

    @staticmethod
    def of(pixels: np.ndarray) -> ArrayBlock:
        return ArrayBlock(sha256=array_sha256(pixels), count=len(pixels), pixels=pixels)

    def read(self, rows: np.ndarray | None = None) -> np.ndarray:
        return self.pixels if rows is None else self.pixels[rows]


@dataclass(frozen=True, kw_only=True, eq=False)
class NpyBlock(Block):
    """Consecutive images of an .npy file, which need not be read as a whole."""

    path: Path
    start: int

    def read(self, rows: np.ndarray | None = None) -> np.ndarray:
        part = np.load(self.path, mmap_mode="r")[self.start : self.start + self.count]
        return with_channel(np.array(part if rows is None else part[rows]))


@dataclass(frozen=True, kw_only=True, eq=False)
class DatasetBlock(Block):
    """Consecutive row groups of a file of a dataset of ours."""

    path: Path
    groups: tuple[int, ...]

    def read(self, rows: np.ndarray | None = None) -> np.ndarray:
        with readable(self.path), pq.ParquetFile(self.path) as file:
            pixels = pixels_of(file.read_row_groups(list(self.groups), columns=["image"], use_threads=False))
        return pixels if rows is None else pixels[rows]


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedBlock(Block):
    """Images in image files' formats, each known by name and by the hash of its bytes."""

    names: tuple[str, ...]
    hashes: tuple[str, ...]
    shape: Shape
    size: int | None
    """What all are resized to; None where all have `shape` already."""

    def data(self, row: int) -> bytes:
        """The bytes of one image file."""
        raise NotImplementedError

    def read(self, rows: np.ndarray | None = None) -> np.ndarray:
        wanted = np.arange(self.count) if rows is None else rows
        pixels = np.empty((len(wanted), *self.shape), np.uint8)
        for i, row in enumerate(wanted):
            pixels[i] = self._decoded(int(row))
        return pixels

    def _decoded(self, row: int) -> np.ndarray:
        try:
            data = self.data(row)
        except OSError as error:
            raise UserError(
                f"{self.names[row]} can't be read ({error.strerror or error}); it was there before"
            ) from None
        if (
            hashlib.sha256(data).hexdigest() != self.hashes[row]
        ):  # else the cache would keep one image under another's name
            raise UserError(
                f"{self.names[row]} has changed since the command began: expected files at rest; begin again"
            )
        try:
            pixels = decode(data, constant=True)
        except UserError as error:
            raise UserError(f"{self.names[row]} can't be decoded: {error}; move it away") from None
        return resize(pixels, self.size, self.shape[2]) if self.size else pixels  # a grey image fills three channels


@dataclass(frozen=True, kw_only=True, eq=False)
class FilesBlock(EncodedBlock):
    """Image files, their paths for names."""

    def data(self, row: int) -> bytes:
        return Path(self.names[row]).read_bytes()


@dataclass(frozen=True, kw_only=True, eq=False)
class ParquetBlock(EncodedBlock):
    """Image files in the column of a Parquet file."""

    path: Path
    column: str
    places: tuple[tuple[int, int], ...]
    """Row group and row in it."""

    def data(self, row: int) -> bytes:
        group, at = self.places[row]
        return image_bytes(_encoded(self.path, self.path.stat().st_mtime_ns, self.column, group)[at].as_py())


@dataclass(frozen=True, kw_only=True, eq=False)
class ResizedBlock(Block):
    """Another block's images at another size."""

    block: Block
    size: int

    @staticmethod
    def of(block: Block, size: int) -> ResizedBlock:
        sha256 = text_sha256(f"{block.sha256} resized to {size}")
        return ResizedBlock(sha256=sha256, count=block.count, block=block, size=size)

    def read(self, rows: np.ndarray | None = None) -> np.ndarray:
        pixels = self.block.read(rows)
        return np.stack([resize(image, self.size, image.shape[2]) for image in pixels])


@dataclass(frozen=True, kw_only=True, eq=False)
class RgbBlock(Block):
    """Another block's grey images with the channel three times."""

    block: Block

    @staticmethod
    def of(block: Block) -> RgbBlock:
        return RgbBlock(sha256=text_sha256(f"{block.sha256} as RGB"), count=block.count, block=block)

    def read(self, rows: np.ndarray | None = None) -> np.ndarray:
        return np.repeat(self.block.read(rows), 3, axis=3)


def array_sha256(pixels: np.ndarray) -> str:
    """Hash of shape and values."""
    digest = hashlib.sha256(f"{pixels.shape}".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def encoded_sha256(hashes: tuple[str, ...], shape: Shape, size: int | None) -> str:
    """Hash of image files and of what is made of them."""
    return text_sha256(" ".join([*hashes, str(shape), f"resized to {size}"]))


def with_channel(pixels: np.ndarray) -> np.ndarray:
    """(N, H, W) to (N, H, W, 1); what has channels stays."""
    return pixels[..., None] if pixels.ndim == 3 else pixels


def image_bytes(value: bytes | dict[str, bytes] | None) -> bytes:
    """A cell of an image column: bytes, or Hugging Face's struct with `bytes` in it."""
    return (value.get("bytes") if isinstance(value, dict) else value) or b""


@lru_cache(maxsize=2)  # blocks are smaller than some row groups, which must not be read once for each
def _encoded(path: Path, _modified_ns: int, column: str, group: int) -> pa.ChunkedArray:
    with pq.ParquetFile(path) as file:
        return file.read_row_group(group, columns=[column], use_threads=False).column(column)
