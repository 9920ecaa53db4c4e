"""Image files as images to measure: in folders of any layout, or in a column of Parquet files."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import UserError
from vaegan.images import inspect
from vaegan.importers.base import SPLIT_NAMES, ImportConfig, Record
from vaegan.importers.folder import SUFFIXES, files_below, suffix
from vaegan.importers.parquet import open_parquet, parquet_files
from vaegan.metrics.sources.base import UNSPLIT, ImageSource, Progress, no_progress
from vaegan.metrics.sources.blocks import (
    Block,
    FilesBlock,
    ParquetBlock,
    Shape,
    block_size,
    encoded_sha256,
    image_bytes,
)
from vaegan.shards import MANIFEST

LOOKED_AT_ONCE = 256
"""Image files whose bytes are in memory while a source is opened."""
COLUMNS = ImportConfig().columns
"""What the columns are called, as for `vaegan.prepare`."""

Place = tuple[Path, int, int] | None
"""Parquet file, row group and row in it; None for a file of its own."""


@dataclass(frozen=True)
class _Found:
    """An image file that a look at it took for one."""

    record: Record
    """Without the bytes."""
    place: Place
    sha256: str
    shape: Shape


def folder_source(
    root: Path, split: str | None = None, size: int | None = None, progress: Progress = no_progress
) -> ImageSource:
    """A folder of image files; see `open_source`. image_id is the path below the folder; patients are not known."""
    splits = folder_splits(root)
    tops = [folder for name, folder in splits if split in (None, name)] if splits else [root]
    if not tops or (not splits and split not in (None, UNSPLIT)):
        has = ", ".join(folder.name for _, folder in splits) or "no splits"
        raise UserError(f"{root} has no folder for the {split} split: it has {has}; name another split or folder")
    below = [(top, path) for top in tops for path in files_below(top)]
    files = [(top, path) for top, path in below if suffix(path) in SUFFIXES]
    if not files:
        others = ", ".join(sorted({suffix(path) or "no suffix" for _, path in below})) or "nothing"
        raise UserError(f"no image files in {root} (found {others}): expected .png, .jpg or the like at any depth")
    records = (
        (Record(str(top / path), top / path, (top / path).relative_to(root).as_posix(), _class(path)), None)
        for top, path in files
    )
    return _source(root, records, len(files), size, progress)


def _class(path: str) -> tuple[str, ...]:
    """The subfolder that a path begins with, where it begins with one."""
    return tuple(path.split("/")[:-1][:1])


def folder_splits(root: Path) -> list[tuple[str, Path]]:
    """train/, val/, test/ (or what else they are called) at the top of a folder, by their name here."""
    folders = sorted(each for each in root.iterdir() if each.is_dir() and not each.name.startswith("."))
    splits = [(SPLIT_NAMES[each.name.lower()], each) for each in folders if each.name.lower() in SPLIT_NAMES]
    if not splits and len(folders) == 1 and folder_splits(folders[0]):
        raise UserError(f"{root} holds only {folders[0].name}/, which holds the splits: name {folders[0]} instead")
    return splits


def parquet_source(
    path: Path, split: str | None = None, size: int | None = None, progress: Progress = no_progress
) -> ImageSource:
    """Parquet with image files in the column `image`, Hugging Face's for instance; see `open_source`."""
    files = parquet_files(path)
    names = _column_names(path, files)
    has = parquet_splits(path) or {UNSPLIT}
    if split is not None and split not in has:
        raise UserError(f"{path} has no rows of the {split} split: it has {', '.join(sorted(has))}; name another")
    rows = open_parquet(ImportConfig(images=path)).records() if COLUMNS.label in names else _unlabelled(files)
    placed = zip(rows, _places(files), strict=True)
    wanted = (row for row in placed if split is None or (row[0].split or UNSPLIT) == split)
    return _source(path, wanted, sum(pq.read_metadata(file).num_rows for file in files), size, progress)


def parquet_splits(path: Path) -> set[str]:
    """The splits that a column tells apart; empty without one."""
    found: set[str] = set()
    files = parquet_files(path)
    if COLUMNS.split not in _column_names(path, files):
        return found
    for file in files:
        column = pq.read_table(file, columns=[COLUMNS.split]).column(0)
        found |= {str(name).lower() for name in column.unique().to_pylist()}
    return {SPLIT_NAMES[name] for name in found if name in SPLIT_NAMES}


def _column_names(path: Path, files: list[Path]) -> list[str]:
    """The columns of the first file; all files are seen to be of this kind."""
    schemas = [_schema(file) for file in files]
    if any(b"augray" in (schema.metadata or {}) for schema in schemas):
        raise UserError(f"{path} is part of a dataset, without its {MANIFEST}: name the folder that has both")
    for file, schema in zip(files, schemas, strict=True):
        if COLUMNS.image not in schema.names:
            raise UserError(f"{file} has no column {COLUMNS.image!r} of image files: it has {', '.join(schema.names)}")
    return list(schemas[0].names)


def _schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (pa.ArrowInvalid, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{file} isn't a Parquet file ({reason}); remove or replace it") from None


def _unlabelled(files: list[Path]) -> Iterator[Record]:
    for file in files:
        row = 0
        for batch in pq.ParquetFile(file).iter_batches(batch_size=LOOKED_AT_ONCE, columns=[COLUMNS.image]):
            for value in batch.column(0).to_pylist():
                yield Record(f"{file.name}:{row}", image_bytes(value), f"{file.stem}-{row:06d}", None)
                row += 1


def _places(files: list[Path]) -> Iterator[Place]:
    for file in files:
        metadata = pq.read_metadata(file)
        for group in range(metadata.num_row_groups):
            for row in range(metadata.row_group(group).num_rows):
                yield file, group, row


# ---------------------------------------------------------------------------------------------------------------- both
def _source(
    path: Path, records: Iterable[tuple[Record, Place]], total: int, size: int | None, progress: Progress
) -> ImageSource:
    """Look at all image files, once each, and make a source of those that are images."""
    found: list[_Found] = []
    rejected: list[tuple[str, str]] = []
    for record, place, seen in _looks(iter(records), total, progress):
        if isinstance(seen, str):
            rejected.append((record.name, seen))
        else:
            found.append(_Found(record, place, *seen))
    if not found:
        name, reason = rejected[0]
        raise UserError(f"none of the {len(rejected)} files in {path} is a readable image ({name}: {reason})")
    channels = max(each.shape[2] for each in found)
    shape = (size, size, channels) if size else (*_one_size(path, found), channels)
    labels, classes = _labels([each.record.labels or () for each in found])
    return ImageSource(
        name=str(path),
        shape=shape,
        blocks=tuple(_blocks(found, shape, size)),
        labels=labels,
        classes=classes,
        patient_id=np.array([each.record.patient_id or "" for each in found], dtype=object),
        image_id=np.array([each.record.image_id for each in found], dtype=object),
        rejected=tuple(rejected),
    )


def _looks(
    records: Iterator[tuple[Record, Place]], total: int, progress: Progress
) -> Iterator[tuple[Record, Place, tuple[str, Shape] | str]]:
    """Each image file's hash and shape, or the reason why it is none; in threads, since most of it is waiting."""
    done = 0
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        while part := list(islice(records, LOOKED_AT_ONCE)):
            seen = pool.map(_look, [record.image for record, _ in part])
            for (record, place), each in zip(part, seen, strict=True):
                yield Record(record.name, b"", record.image_id, record.labels, record.patient_id), place, each
            done += len(part)
            progress(done, total)


def _look(image: Path | bytes | np.ndarray) -> tuple[str, Shape] | str:
    assert not isinstance(image, np.ndarray)
    try:
        data = image.read_bytes() if isinstance(image, Path) else image
        return hashlib.sha256(data).hexdigest(), inspect(data)
    except UserError as error:
        return str(error)
    except OSError as error:
        return str(error.strerror or error)


def _one_size(path: Path, found: list[_Found]) -> tuple[int, int]:
    sizes = Counter(each.shape[:2] for each in found)
    (height, width), count = sizes.most_common(1)[0]
    if len(sizes) > 1:
        other = next(each for each in found if each.shape[:2] != (height, width))
        raise UserError(
            f"{path} holds images of {len(sizes)} sizes ({count} of {height}x{width}, but {other.record.image_id} is "
            f"{other.shape[0]}x{other.shape[1]}): expected one; give --size {min(height, width)} to resize all alike"
        )
    return height, width


def _labels(names: list[tuple[str, ...]]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Multi-hot rows, and what their columns are called."""
    classes = tuple(sorted({name for each in names for name in each}))
    column_of = {name: column for column, name in enumerate(classes)}
    labels = np.zeros((len(names), len(classes)), np.uint8)
    for row, each in enumerate(names):
        labels[row, [column_of[name] for name in each]] = 1
    return labels, classes


def _blocks(found: list[_Found], shape: Shape, size: int | None) -> Iterator[Block]:
    step = block_size(shape)
    of_file: dict[Path | None, list[_Found]] = {}
    for each in found:
        of_file.setdefault(each.place and each.place[0], []).append(each)
    for file, rows in of_file.items():
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            hashes = tuple(each.sha256 for each in part)
            about: dict[str, Any] = dict(
                sha256=encoded_sha256(hashes, shape, size), count=len(part), shape=shape, size=size, hashes=hashes,
                names=tuple(each.record.name for each in part),
            )  # fmt: skip
            if file is None:
                yield FilesBlock(**about)
            else:
                places = tuple(each.place[1:] for each in part if each.place)
                yield ParquetBlock(**about, path=file, column=COLUMNS.image, places=places)
