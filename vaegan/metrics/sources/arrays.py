"""Arrays as images to measure: in memory, .npy, .npz."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import UserError
from vaegan.metrics.sources.base import UNSPLIT, ImageSource
from vaegan.metrics.sources.blocks import ArrayBlock, Block, NpyBlock, Shape, array_sha256, block_size, with_channel
from vaegan.shards import SPLITS, Images


def source_of(images: Images, name: str = "images in memory", classes: Sequence[str] = ()) -> ImageSource:
    """Rows of a dataset that are in memory already."""
    names = tuple(classes) or tuple(map(str, range(images.labels.shape[1])))
    blocks = _array_blocks(images.pixels)
    ids = (images.patient_id, images.image_id)
    return ImageSource(name, _shape(images.pixels), blocks, images.labels, names, *ids, images.labelled)


def array_source(path: Path, split: str | None = None) -> ImageSource:
    """uint8 images of an .npy or .npz file; see `open_source`."""
    if path.suffix == ".npy":
        return _npy_source(path, split)
    with open_npz(path) as arrays:
        splits = [name for name in SPLITS if f"{name}_images" in arrays]
        if (splits and split not in (None, *splits)) or (not splits and split not in (None, UNSPLIT)):
            raise UserError(f"{path} has no {split} split: it has {', '.join(splits) or 'no splits'}; name another")
        wanted = [split] if splits and split else splits
        if wanted:
            pixels = np.concatenate([with_channel(arrays[f"{name}_images"]) for name in wanted])
            given = [arrays.get(f"{name}_labels") for name in wanted]
            labels = None if any(each is None for each in given) else np.concatenate(given)
        else:
            pixels, labels = with_channel(arrays[_images_key(path, arrays)]), arrays.get("labels")
    _check_array(path, pixels)
    return _numbered(path, _array_blocks(pixels), pixels.shape, labels)


def _npy_source(path: Path, split: str | None) -> ImageSource:
    if split not in (None, UNSPLIT):
        raise UserError(f"{path} has no {split} split: an .npy has no splits; name another file")
    try:
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path} can't be read ({error}): expected uint8 images (N, H, W, C)") from None
    shape = (*pixels.shape, 1) if pixels.ndim == 3 else pixels.shape
    _check_array(path, pixels if pixels.ndim == 4 else pixels[..., None])
    step = block_size(shape[1:])
    blocks = tuple(
        NpyBlock(sha256=array_sha256(with_channel(part)), count=len(part), path=path, start=start)
        for start in range(0, len(pixels), step)
        for part in [pixels[start : start + step]]
    )
    return _numbered(path, blocks, shape, None)


def open_npz(path: Path) -> Any:
    """NumPy's archive, a context manager; nothing pickled is loaded from it."""
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path} can't be read as .npz ({error}): expected arrays of uint8 images") from None


def _images_key(path: Path, arrays: Any) -> str:
    """The array of images: the one of that name, or the only one that could be it."""
    possible = [name for name in arrays.files if arrays[name].dtype == np.uint8 and arrays[name].ndim in (3, 4)]
    for name in ("images", "arr_0"):
        if name in possible:
            return name
    if len(possible) != 1:
        raise UserError(
            f"{path} holds {', '.join(arrays.files) or 'nothing'}: expected one uint8 array (N, H, W) or (N, H, W, C), "
            "best called images"
        )
    return possible[0]


def _check_array(path: Path, pixels: np.ndarray) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3) or not len(pixels):
        raise UserError(
            f"{path} holds {pixels.dtype} of shape {pixels.shape}: expected uint8 (N, H, W) or (N, H, W, C), "
            "N at least 1 and C 1 or 3"
        )


def _numbered(path: Path, blocks: tuple[Block, ...], shape: Sequence[int], labels: np.ndarray | None) -> ImageSource:
    """Images that have numbers only, and perhaps labels: integers (N,) or (N, 1), or 0 and 1 (N, K)."""
    count = shape[0]
    if labels is not None and (len(labels) != count or labels.dtype.kind not in "iub"):
        raise UserError(f"{path} has {count} images and labels {labels.dtype} {labels.shape}: expected an integer each")
    classes: tuple[str, ...] = ()
    multi_hot = np.zeros((count, 0), np.uint8)
    if labels is not None and labels.ndim == 2 and labels.shape[1] > 1:
        multi_hot, classes = labels.astype(np.uint8), tuple(map(str, range(labels.shape[1])))
    elif labels is not None:
        values, which = np.unique(labels.reshape(count), return_inverse=True)
        multi_hot, classes = np.eye(len(values), dtype=np.uint8)[which], tuple(map(str, values))
    names = np.array([str(row) for row in range(count)], dtype=object)
    unknown = np.full(count, "", dtype=object)
    return ImageSource(str(path), (shape[1], shape[2], shape[3]), blocks, multi_hot, classes, unknown, names)


def _array_blocks(pixels: np.ndarray) -> tuple[Block, ...]:
    step = block_size(_shape(pixels))
    return tuple(ArrayBlock.of(pixels[start : start + step]) for start in range(0, len(pixels), step))


def _shape(pixels: np.ndarray) -> Shape:
    return (pixels.shape[1], pixels.shape[2], pixels.shape[3])
