"""Writing a dataset: row group by row group, and whole or not at all."""

import dataclasses
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import UserError
from cluster.storage import file_sha256, write_json
from vaegan.shards.dataset import MANIFEST, REJECTS, Manifest, SplitInfo
from vaegan.shards.rows import FORMAT_VERSION, SPLITS, Images, schema, to_table

GROUP_ROWS, GROUP_BYTES = 256, 4 * 2**20
"""Of a row group, at most: small ones can be permuted for a shuffle and read without much around them."""
FILE_ROWS, FILE_BYTES = 4096, 256 * 2**20
"""Of a file, at most, in raw pixels: enough files to deal out to workers, few enough to list."""


class DatasetWriter:
    """Writes a dataset row group by row group; nothing has its final name until `finish`, and the manifest comes last.

    Memory holds one row group of each split, however many rows there are. A context manager: leaving it without
    `finish` removes what was written.

    Args:
        rows_per_file, rows_per_group: at most so many; by default what `FILE_BYTES` and `GROUP_BYTES` allow.

    Raises:
        UserError: there is something at `path` already.
    """

    def __init__(
        self,
        path: Path,
        *,
        task: str,
        classes: Sequence[str],
        height: int,
        width: int,
        channels: int,
        rows_per_file: int | None = None,
        rows_per_group: int | None = None,
    ) -> None:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path} exists already: expected no such folder; choose another --out or remove it")
        self.path = path
        row_bytes = height * width * channels
        self.rows_per_file = rows_per_file or max(1, min(FILE_ROWS, FILE_BYTES // row_bytes))
        self.rows_per_group = min(
            self.rows_per_file, rows_per_group or max(1, min(GROUP_ROWS, GROUP_BYTES // row_bytes))
        )
        self.classes = tuple(classes)
        self.about = dict(task=task, classes=self.classes, height=height, width=width, channels=channels)
        self.schema = schema(**self.about)  # type: ignore[arg-type]
        self.temporary = path.with_name(f".{path.name}.partial")
        self.splits: dict[str, _SplitWriter] = {}
        self.rejects: list[tuple[str, str]] = []
        self.tables: dict[str, pa.Table] = {}

    def __enter__(self) -> Self:
        shutil.rmtree(self.temporary, ignore_errors=True)  # what a killed run left
        self.temporary.mkdir(parents=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for split in self.splits.values():
            split.abandon()
        shutil.rmtree(self.temporary, ignore_errors=True)

    def allow_unlabelled(self) -> None:
        """Give the files a column `labelled`, for rows that have no label; before the first row."""
        assert not self.splits, "rows were added already"
        self.schema = schema(**self.about, unlabelled=True)  # type: ignore[arg-type]

    def add(self, split: str, images: Images) -> None:
        """Append rows to a split; any number of times, in any order of splits.

        Raises:
            ValueError: rows without a label, and no `allow_unlabelled` before.
        """
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is none of {SPLITS}")
        if split not in self.splits:
            self.splits[split] = _SplitWriter(
                self.temporary, split, self.schema, self.rows_per_file, self.rows_per_group
            )
        with self._told_where():
            self.splits[split].add(images)

    def reject(self, path: str, reason: str) -> None:
        """Note an input that could not be used."""
        self.rejects.append((path, reason))

    def table(self, name: str, rows: pa.Table) -> None:
        """A further file of the dataset, beside its images."""
        self.tables[name] = rows

    def finish(self, *, report: dict[str, Any] | None = None, provenance: dict[str, Any] | None = None) -> Manifest:
        """Write what is pending, the rejects and the manifest, and give the folder its final name."""
        rejects = pa.table({"path": [r[0] for r in self.rejects], "reason": [r[1] for r in self.rejects]},
                           schema=pa.schema([("path", pa.string()), ("reason", pa.string())]))  # fmt: skip
        tables = {REJECTS: rejects} | self.tables
        with self._told_where():
            for name, rows in tables.items():
                pq.write_table(rows, self.temporary / name, compression="zstd")
            splits = {name: self.splits[name].finish(self.classes) for name in SPLITS if name in self.splits}
        manifest = Manifest(
            **self.about,  # type: ignore[arg-type]
            splits={name: info for name, info in splits.items() if info.files},
            rejects=len(self.rejects),
            tables={name: file_sha256(self.temporary / name) for name in tables},
            report=report or {},
            provenance=provenance or {},
        )
        content = {"format": FORMAT_VERSION} | dataclasses.asdict(manifest)
        for info in content["splits"].values():
            if not info["num_unlabelled"]:  # as it is in datasets that were made before there was such a thing
                del info["num_unlabelled"]
        write_json(self.temporary / MANIFEST, content)
        if self.path.exists():
            self.path.rmdir()  # empty, as __init__ saw
        self.temporary.rename(self.path)
        return manifest

    @contextmanager
    def _told_where(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            error.filename = error.filename or str(self.path)  # Arrow doesn't say where the disk is full
            raise


class _SplitWriter:
    """The files of one split: row groups of equal size but for a file's last."""

    def __init__(self, folder: Path, split: str, schema: pa.Schema, rows_per_file: int, rows_per_group: int) -> None:
        self.folder, self.split, self.schema = folder, split, schema
        self.rows_per_file, self.rows_per_group = rows_per_file, rows_per_group
        self.pending: list[Images] = []
        self.num_pending = 0
        self.writer: pq.ParquetWriter | None = None
        self.path = folder
        self.rows_in_file = 0
        self.files: dict[str, str] = {}
        self.row_groups: dict[str, list[int]] = {}
        self.counts: Any = 0
        self.num_images = self.num_unlabelled = 0
        self.patients: set[str] = set()

    def add(self, images: Images) -> None:
        self.counts = self.counts + images.labels[images.has_label].sum(axis=0, dtype=np.int64)
        self.num_images += len(images)
        self.num_unlabelled += int(np.sum(~images.has_label))
        self.patients.update(images.patient_id)
        self.pending.append(images)
        self.num_pending += len(images)
        while self.num_pending >= (wanted := self._next_group()):
            self._write(wanted)

    def finish(self, classes: Iterable[str]) -> SplitInfo:
        if self.num_pending:
            self._write(self.num_pending)
        self._close()
        per_class = dict(zip(classes, map(int, self.counts), strict=True))
        return SplitInfo(
            self.num_images, per_class, len(self.patients), self.files, self.row_groups, self.num_unlabelled
        )

    def abandon(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def _next_group(self) -> int:
        return min(self.rows_per_group, self.rows_per_file - self.rows_in_file)

    def _write(self, rows: int) -> None:
        images = self.pending[0] if len(self.pending) == 1 else Images.concatenate(self.pending)
        group, rest = images.take(slice(rows)), images.take(slice(rows, None))
        self.pending, self.num_pending = ([rest] if len(rest) else []), len(rest)
        if self.writer is None:
            self.path = self.folder / f"{self.split}-{len(self.files):05d}.parquet"
            self.writer = pq.ParquetWriter(self.path, self.schema, compression="zstd")
        self.writer.write_table(to_table(group, self.schema), row_group_size=self.rows_per_group)
        self.row_groups.setdefault(self.path.name, []).append(len(group))
        self.rows_in_file += len(group)
        if self.rows_in_file == self.rows_per_file:
            self._close()

    def _close(self) -> None:
        if self.writer is None:
            return
        self.writer.close()
        self.writer, self.rows_in_file = None, 0
        self.files[self.path.name] = file_sha256(self.path)
