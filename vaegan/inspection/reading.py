"""A dataset's files, checked before they are read and read a few hundred rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import UserError
from cluster.storage import file_sha256
from vaegan.shards import MANIFEST, Manifest, locate, pixels_of, readable, schema

COLUMNS = ("image", "labels", "patient_id", "image_id", "source", "model")
NEVER_NULL = (*COLUMNS[:-1], "labelled")
BATCH_ROWS, BATCH_BYTES = 256, 8 * 2**20
"""Read at a time, at most, in raw pixels."""
MAX_SIDE = 16384


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a split."""

    split: str
    path: Path
    num_rows: int
    marked: bool = False
    """Whether it says of each row if it has a label; else all have one."""


def open_shards(dataset: Path, manifest: Manifest, *, verify: bool) -> list[Shard]:
    """The files that a manifest lists, in the order of its splits; none of their rows is read.

    Args:
        verify: whether each file's sha256 must be the manifest's.

    Raises:
        UserError: a file is missing, damaged, not the one that was written, or doesn't hold what the manifest says.
    """
    _check_manifest(dataset, manifest)
    expected = _schema(manifest)
    for name, sha256 in manifest.tables.items():
        _located(dataset, name, sha256, verify)
    shards = []
    for split, info in manifest.splits.items():
        for name, sha256 in info.files.items():
            path = _located(dataset, name, sha256, verify)
            with readable(path):
                found = pq.read_schema(path)
                num_rows = pq.read_metadata(path).num_rows
            _check_schema(path, found, expected)
            marked = "labelled" in found.names and pa.types.is_boolean(found.field("labelled").type)
            shards.append(Shard(split, path, num_rows, marked))
    return shards


def _check_manifest(dataset: Path, manifest: Manifest) -> None:
    """Refuse one that somebody else wrote, or edited, in a way that nothing below could make sense of."""
    shape = (manifest.height, manifest.width, manifest.channels)
    fits = all(isinstance(side, int) and 0 < side <= MAX_SIDE for side in shape) and shape[2] in (1, 3)
    fits = fits and isinstance(manifest.tables, dict)
    fits = fits and all(isinstance(name, str) for name in manifest.classes)
    fits = fits and len(set(manifest.classes)) == len(manifest.classes)
    fits = fits and all(isinstance(info.files, dict) and isinstance(info.per_class, dict)
                        for info in manifest.splits.values())  # fmt: skip
    if not fits:
        raise UserError(
            f"{MANIFEST} of {dataset} isn't that of a dataset (shape {shape}, classes {list(manifest.classes)}): "
            "expected what vaegan.prepare writes; prepare the dataset again"
        )


def _schema(manifest: Manifest) -> pa.Schema:
    return schema(
        task=manifest.task, classes=manifest.classes, height=manifest.height, width=manifest.width,
        channels=manifest.channels,
    )  # fmt: skip


def _located(dataset: Path, name: str, sha256: str, verify: bool) -> Path:
    """Where a file is on this machine, if it is there, and with `verify` if it is the one that was written."""
    if Path(name).name != name or not isinstance(sha256, str):
        raise UserError(
            f"the manifest of {dataset} lists {name!r}: expected files of the folder itself and their sha256; prepare "
            "the dataset again"
        )
    path = locate(dataset, name, sha256)
    if not path.is_file():
        raise UserError(f"{path} is missing: the manifest lists it; copy it again or prepare the dataset again")
    if verify and (found := file_sha256(path)) != sha256:
        raise UserError(
            f"{path} isn't the file that was written (sha256 {found[:12]}, expected {sha256[:12]}): it was changed or "
            "damaged; copy or prepare it again, or look at it as it is with --verify false"
        )
    return path


def table_at(dataset: Path, manifest: Manifest, name: str) -> Path | None:
    """Where a table beside the splits' files is on this machine; None where a dataset has none, as older ones."""
    if name in manifest.tables:
        return locate(dataset, name, manifest.tables[name])
    return dataset / name if (dataset / name).is_file() else None


def _check_schema(path: Path, found: pa.Schema, expected: pa.Schema) -> None:
    wrong = [name for name in COLUMNS if name not in found.names or found.field(name).type != expected.field(name).type]
    if wrong:
        have = f"type {found.field(wrong[0]).type}" if wrong[0] in found.names else "no such column"
        raise UserError(
            f"{path}: column {wrong[0]} should be of type {expected.field(wrong[0]).type} by the manifest, found "
            f"{have}; prepare the dataset again"
        )


def batches(shards: Sequence[Shard], manifest: Manifest) -> Iterator[tuple[Shard, pa.Table]]:
    """All rows in order, a batch at a time, with `COLUMNS`, and `labelled` of files that have it.

    A file's rows are never in memory together.

    Raises:
        UserError: a file can't be read to its end, or a value is missing.
    """
    about = _schema(manifest).metadata
    size = max(1, min(BATCH_ROWS, BATCH_BYTES // (manifest.height * manifest.width * manifest.channels)))
    for shard in shards:
        with readable(shard.path), pq.ParquetFile(shard.path) as file:
            for batch in file.iter_batches(size, columns=[*COLUMNS, *(["labelled"] if shard.marked else [])]):
                table = pa.Table.from_batches([batch]).replace_schema_metadata(about)
                _check_complete(shard.path, table)
                yield shard, table


def _check_complete(path: Path, table: pa.Table) -> None:
    for name in NEVER_NULL:
        if name in table.column_names and table.column(name).null_count:
            raise UserError(f"{path}: a row without {name}: expected one in every row; prepare the dataset again")


def pixels_at(shards: Sequence[Shard], rows: Sequence[int] | np.ndarray, manifest: Manifest) -> np.ndarray:
    """Pixels of some rows, counted over all shards, in the order asked for: uint8 (len(rows), H, W, C).

    Only the row groups that hold them are read, each once.
    """
    rows = np.asarray(rows, dtype=np.int64)
    pixels = np.empty((len(rows), manifest.height, manifest.width, manifest.channels), dtype=np.uint8)
    order = np.argsort(rows, kind="stable")
    first = 0
    for shard in shards:
        inside = order[(rows[order] >= first) & (rows[order] < first + shard.num_rows)]
        if len(inside):
            with readable(shard.path), pq.ParquetFile(shard.path) as file:
                _fill(pixels, inside, rows[inside] - first, file, _schema(manifest).metadata)
        first += shard.num_rows
    return pixels


def _fill(pixels: np.ndarray, at: np.ndarray, rows: np.ndarray, file: Any, about: dict[bytes, bytes]) -> None:
    """Rows of one file to their places."""
    ends = np.cumsum([file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)])
    group = np.searchsorted(ends, rows, side="right")
    for g in np.unique(group):
        mine = group == g
        start = ends[g - 1] if g else 0
        table = file.read_row_group(int(g), columns=["image"]).take(pa.array(rows[mine] - start))
        pixels[at[mine]] = pixels_of(table.replace_schema_metadata(about))
