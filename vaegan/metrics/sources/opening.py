"""Whatever is at a path, as images to measure."""

from __future__ import annotations

from pathlib import Path

from cluster.errors import UserError
from vaegan.importers.parquet import parquet_files
from vaegan.metrics.sources.arrays import array_source, open_npz
from vaegan.metrics.sources.base import ImageSource, Progress, no_progress
from vaegan.metrics.sources.dataset import dataset_source
from vaegan.metrics.sources.encoded import folder_source, folder_splits, parquet_source, parquet_splits
from vaegan.shards import SPLITS, is_dataset, read_manifest


def open_source(
    path: Path, split: str | None = None, *, size: int | None = None, progress: Progress = no_progress
) -> ImageSource:
    """What is at a path, as images to measure.

    - A dataset of ours: a folder with manifest.json.
    - A folder of image files in any layout. train/, val/, test/ at its top are splits; the first folder below is the
      class.
    - Parquet files with image files in the column `image`, and other columns as `vaegan.prepare` reads them.
    - .npz or .npy of uint8 (N, H, W) or (N, H, W, C); in an .npz `labels` beside it, or MedMNIST's `train_images` and
      so on. An .npz must be read as a whole, an .npy not.

    Image files are read once for their hash, header and what a quick look finds wrong; those that are no readable
    images are listed in `rejected`.

    Args:
        split: "train", "val" or "test"; None is all there is. What has no splits is "train".
        size: make all images squares of that many pixels; without it all must have one size.

    Raises:
        UserError: nothing there, none of these, no such split, no images, or images of several sizes.
    """
    if is_dataset(path):
        return dataset_source(path, split).resized(size)
    if not path.exists():
        raise UserError(f"no folder or file {path}: expected a dataset, images, Parquet or .npz; check the path")
    if path.suffix in (".npz", ".npy"):
        return array_source(path, split).resized(size)
    if parquet_files(path) if path.is_dir() else path.suffix == ".parquet":
        return parquet_source(path, split, size, progress)
    if path.is_dir():
        return folder_source(path, split, size, progress)
    raise UserError(
        f"{path} is none of what can be measured: expected a dataset, a folder of image files, .parquet, .npz or .npy"
    )


def source_splits(path: Path) -> tuple[str, ...]:
    """The splits of what `open_source` would open, without opening it; () where it has none.

    Raises:
        UserError: nothing is there, or it is not what its name says.
    """
    if is_dataset(path):
        return tuple(read_manifest(path).splits)
    if path.suffix == ".npz":
        with open_npz(path) as arrays:
            return tuple(name for name in SPLITS if f"{name}_images" in arrays)
    if path.suffix == ".npy" or not path.exists():
        return ()
    found = parquet_splits(path) if parquet_files(path) else {name for name, _ in folder_splits(path)}
    return tuple(name for name in SPLITS if name in found)
