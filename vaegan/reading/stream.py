"""A split that stays in its Parquet files, read window by window in the order that `Order` gives.

A window's rows are written into their permuted places in one array as they are read, so that batches are slices of it.
While it is used, threads read the next one (Arrow and NumPy release the interpreter's lock): a step waits for none but
the first. A window knows nothing of the one before, so that resuming means to begin with another.

Why not a buffer from which rows are drawn at random, as webdataset and Ray Data have it: its state at a step depends on
all steps before. Why not a raw copy, memory-mapped and permuted as a whole: as long as the page cache holds it, it is
quicker (benchmarks/reading.py), but then it fits into memory; beyond that every row should be a disk access of its own
(not measured), and the copy of a remote dataset must be complete before the first step.
"""

import copy
import dataclasses
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import UserError
from cluster.remote import url_of
from cluster.storage import text_sha256
from vaegan.reading.order import Order, Part, Window
from vaegan.shards import (
    Images,
    from_table,
    labelled_of,
    labels_of,
    locate,
    pixels_of,
    read_manifest,
    readable,
    split_info,
)
from vaegan.tensors import UNLABELLED

REMOTE_FILES_AT_ONCE = 16
PARTS_PER_JOB = 8
BLOCK_BYTES = 32 * 2**20
"""Of pixels that are read at a time where order doesn't matter."""

Rows = tuple[np.ndarray, np.ndarray]
"""Pixels uint8 (N, H, W, C) and multi-hot labels uint8 (N, K), a row of `UNLABELLED` where an image has none."""


def marked_labels(images: Images) -> np.ndarray:
    """Labels with `UNLABELLED` in rows that have none, uint8 (N, K)."""
    return _marked(images.labels, None if images.labelled is None else ~images.labelled)


def _marked(labels: np.ndarray, missing: np.ndarray | None) -> np.ndarray:
    if missing is None:
        return labels
    return np.where(missing[:, None], np.uint8(UNLABELLED), labels)


@dataclass(frozen=True, kw_only=True)
class ReadingConfig:
    """How training images are read. Without effect on a run but through the order of its images."""

    memory_gb: float = 4.0
    """Gigabytes of pixels that a worker may hold: a split that fits is read once, and shuffled exactly; a larger one is
    streamed."""
    window_mb: int = 256
    """Of a stream: megabytes of pixels that are mixed with each other; as many again are read meanwhile."""
    files_at_once: int = 0
    """Of a stream: files whose row groups are mixed with each other; 0 takes all, or 16 of a dataset at a URL, of which
    a worker then needs no more to begin with."""
    threads: int = 2
    """Of a stream: threads that read and unpack."""

    def __post_init__(self) -> None:
        if self.memory_gb < 0 or self.files_at_once < 0:
            raise ValueError("reading.memory_gb and reading.files_at_once: expected 0 or more")
        if self.window_mb < 1 or self.threads < 1:
            raise ValueError("reading.window_mb and reading.threads: expected 1 or more")


class ShardReader:
    """A split that stays in its files: what training asks of `Images`, without the pixels in memory.

    Raises:
        UserError: the dataset has no such split, or a file of it is missing or damaged; also whenever rows are read.
    """

    def __init__(self, dataset: Path, split: str, config: ReadingConfig | None = None) -> None:
        config = config or ReadingConfig()
        manifest, info = read_manifest(dataset), split_info(dataset, split)
        self.dataset, self.split, self.config = dataset, split, config
        self.files = list(info.files.items())
        self.shape = (manifest.height, manifest.width, manifest.channels)
        self.num_classes = len(manifest.classes)
        known = info.row_groups
        self.groups = tuple(
            tuple(known[name]) if name in known else self._row_groups(file) for file, (name, _) in enumerate(self.files)
        )
        self._starts = np.cumsum([0, *(length for lengths in self.groups for length in lengths)])
        self._labelled: np.ndarray | None = None  # instead of what the files say
        self._num_unlabelled = info.num_unlabelled
        self._places = [(file, group) for file, lengths in enumerate(self.groups) for group in range(len(lengths))]
        if len(self) != info.num_images:
            raise UserError(
                f"the files of {dataset}'s {split} split hold {len(self)} images and its manifest says "
                f"{info.num_images}: files of two datasets were mixed; prepare the dataset again"
            )

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def files_sha256(self) -> str:
        """SHA-256 of the files' hashes in the manifest: what the split holds, told without reading it."""
        return text_sha256("\n".join(sorted(sha256 for _, sha256 in self.files)))

    @property
    def window_rows(self) -> int:
        return max(1, self.config.window_mb * 2**20 // int(np.prod(self.shape)))

    @property
    def files_at_once(self) -> int:
        return self.config.files_at_once or (REMOTE_FILES_AT_ONCE if url_of(self.dataset) else max(len(self.files), 1))

    @cached_property
    def labels(self) -> np.ndarray:
        """Multi-hot labels of all rows in stored order, uint8 (N, K); zeros where a row has none."""
        return np.concatenate([self._labels(file) for file in range(len(self.files))])

    @cached_property
    def has_label(self) -> np.ndarray:
        """Whether each row has a label, bool (N,)."""
        if self._labelled is not None:
            return self._labelled
        if not self._num_unlabelled:
            return np.ones(len(self), dtype=bool)
        return np.concatenate([labelled_of(self._column(file, "labelled")) for file in range(len(self.files))])

    @property
    def num_unlabelled(self) -> int:
        """Rows without a label, as the manifest counts them."""
        return self._num_unlabelled if self._labelled is None else int((~self._labelled).sum())

    @cached_property
    def patient_id(self) -> np.ndarray:
        """Of all rows in stored order, str (N,)."""
        columns = [self._column(file, "patient_id").column(0).to_pylist() for file in range(len(self.files))]
        return np.array([name for column in columns for name in column], dtype=object)

    def with_labelled(self, labelled: np.ndarray) -> "ShardReader":
        """The same rows, as if but those that `labelled` (N,) says had no label."""
        other = copy.copy(self)
        for name in ("labels", "has_label"):
            vars(other).pop(name, None)  # what was computed before this
        other._labelled = labelled
        return other

    def first_of_each_class(self, number: int) -> list[np.ndarray]:
        """The first `number` rows of each class in stored order, reading no more files than that takes."""
        found: list[list[int]] = [[] for _ in range(self.num_classes)]
        start = 0
        for file in range(len(self.files)):
            labels = self._labels(file)
            for k, rows in enumerate(found):
                rows += (start + np.flatnonzero(labels[:, k])[: number - len(rows)]).tolist()
            if all(len(rows) == number for rows in found):
                break
            start += len(labels)
        return [np.array(rows, dtype=np.int64) for rows in found]

    def take(self, rows: np.ndarray | Sequence[int]) -> Images:
        """The rows at `rows`, in that order, in memory; reads the row groups that they are in."""
        wanted = np.asarray(rows, dtype=np.int64)
        distinct = np.unique(wanted)
        group_of = np.searchsorted(self._starts, distinct, side="right") - 1
        parts = []
        for number in np.unique(group_of):
            file, group = self._places[number]
            within = distinct[group_of == number] - self._starts[number]
            parts.append(from_table(self._read(file, [group])).take(within))
        if not parts:
            return self.take([0]).take([])
        images = Images.concatenate(parts).take(np.searchsorted(distinct, wanted))
        if self._labelled is None:
            return images
        known = self._labelled[wanted]
        return dataclasses.replace(images, labels=images.labels * known[:, None], labelled=known)

    def blocks(self) -> Iterator[np.ndarray]:
        """All pixels in stored order, uint8 (n, H, W, C), the next ones read while some are used."""
        jobs = []
        for file, lengths in enumerate(self.groups):
            step = max(1, BLOCK_BYTES // int(np.prod(self.shape)) // max(lengths, default=1))
            some = [range(start, min(start + step, len(lengths))) for start in range(0, len(lengths), step)]
            jobs += [partial(self._read, file, groups, ["image"]) for groups in some]
        with ThreadPoolExecutor(1, "augray-read") as pool, closing(_one_ahead(pool, jobs)) as tables:
            for table in tables:
                yield pixels_of(table)

    def batches(
        self, *, seed: int, batch_size: int, start: int = 0, stop: int, rank: int = 0, world_size: int = 1
    ) -> Generator[Rows, None, None]:
        """One worker's part of every batch from step `start` to before `stop`, over as many epochs as that takes.

        Close the iterator (`contextlib.closing`) where it isn't used to its end: threads read ahead of it.

        Args:
            batch_size: of all workers together; each gets an equal part.

        Yields:
            Pixels and labels of `batch_size` / `world_size` rows, views of an array that holds a window of them.
        """
        order = self.order(seed=seed, batch_size=batch_size, rank=rank, world_size=world_size)
        pieces: list[Rows] = []
        have = 0
        with closing(self._windows(order, start, stop)) as windows:
            for pixels, labels in windows:
                at = 0
                while at < len(pixels):
                    rows = slice(at, at + order.share - have)
                    pieces.append((pixels[rows], labels[rows]))
                    have += len(pieces[-1][0])
                    at += len(pieces[-1][0])
                    if have == order.share:
                        start += 1
                        yield pieces[0] if len(pieces) == 1 else _joined(pieces)
                        pieces, have = [], 0
                        if start == stop:
                            return
                del pixels, labels  # or three windows would be in memory for a moment

    def order(self, *, seed: int, batch_size: int, rank: int = 0, world_size: int = 1) -> Order:
        """The order of `batches`."""
        return Order(
            groups=self.groups, seed=seed, batch_size=batch_size, window_rows=self.window_rows,
            files_at_once=self.files_at_once, rank=rank, world_size=world_size,
        )  # fmt: skip

    def _windows(self, order: Order, start: int, stop: int) -> Generator[Rows, None, None]:
        """Windows in order, the next one in the making while one is used."""
        ahead: _Loading | None = None
        pool = ThreadPoolExecutor(self.config.threads, "augray-read")
        try:
            for epoch, window, skip in order.windows_from(start, stop):
                ready, ahead = ahead, _Loading(self, window, order.places(epoch, window), skip, pool)
                if ready:
                    yield ready.rows()
                    del ready
            if ahead:
                yield ahead.rows()
        finally:
            pool.shutdown(cancel_futures=True)

    def _path(self, file: int) -> Path:
        return locate(self.dataset, *self.files[file])

    def _row_groups(self, file: int) -> tuple[int, ...]:
        path = self._path(file)
        with readable(path):
            return _lengths(pq.read_metadata(path))

    @contextmanager
    def _opened(self, file: int) -> Iterator[pq.ParquetFile]:
        path = self._path(file)
        with readable(path), pq.ParquetFile(path) as opened:
            if _lengths(opened.metadata) != self.groups[file]:
                raise UserError(f"{path} isn't the file that the manifest lists: prepare the dataset again")
            yield opened

    def _column(self, file: int, *names: str) -> pa.Table:
        return self._read(file, range(len(self.groups[file])), list(names))

    def _labels(self, file: int) -> np.ndarray:
        labels = labels_of(self._column(file, "labels"))
        if self._labelled is None:
            return labels
        start = self._start_of(file, 0)
        return labels * self._labelled[start : start + len(labels), None]

    def _start_of(self, file: int, group: int) -> int:
        """A row group's first row, counted over all files."""
        return int(self._starts[sum(map(len, self.groups[:file])) + group])

    def _marked_labels(self, table: pa.Table, part: Part) -> np.ndarray:
        """Labels of a part of a row group, `UNLABELLED` where there are none, from its own columns."""
        if self._labelled is None:
            return _marked(labels_of(table), ~labelled_of(table) if self._num_unlabelled else None)
        start = self._start_of(part.file, part.group)
        return _marked(labels_of(table), ~self._labelled[start + part.start : start + part.stop])

    def _read(self, file: int, groups: Sequence[int], columns: list[str] | None = None) -> pa.Table:
        with self._opened(file) as opened:
            return opened.read_row_groups(list(groups), columns=columns, use_threads=False)


class _Loading:
    """A window that threads fill: each row goes to its place at once, so that batches are slices."""

    def __init__(
        self, reader: ShardReader, window: Window, places: np.ndarray, skip: int, pool: ThreadPoolExecutor
    ) -> None:
        self.reader, self.skip = reader, skip
        self.pixels = np.empty((len(window), *reader.shape), dtype=np.uint8)
        self.labels = np.empty((len(window), reader.num_classes), dtype=np.uint8)
        bounds = np.cumsum([0, *(part.stop - part.start for part in window.parts)])
        # by file, as they lie on the disk: all must be there before the first is used
        placed = sorted(zip(window.parts, np.split(places, bounds[1:-1]), strict=True), key=_by_file_and_group)
        self.jobs: list[Future[None]] = []
        for _, same in groupby(placed, key=lambda each: each[0].file):
            parts = list(same)
            for at in range(0, len(parts), PARTS_PER_JOB):
                self.jobs.append(pool.submit(self._fill, parts[at : at + PARTS_PER_JOB]))

    def rows(self) -> Rows:
        """Wait, if need be; then the rows in their places, less those to leave out."""
        for job in self.jobs:
            job.result()
        return self.pixels[self.skip :], self.labels[self.skip :]

    def _fill(self, placed: list[tuple[Part, np.ndarray]]) -> None:
        columns = ["image", "labels", *(["labelled"] if self.reader._num_unlabelled else [])]
        with self.reader._opened(placed[0][0].file) as opened:
            for part, places in placed:
                table = opened.read_row_group(part.group, columns=columns, use_threads=False)
                rows = table.slice(part.start, part.stop - part.start)
                self.pixels[places] = pixels_of(rows)
                self.labels[places] = self.reader._marked_labels(rows, part)


def _lengths(metadata: pq.FileMetaData) -> tuple[int, ...]:
    return tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))


def _by_file_and_group(placed: tuple[Part, np.ndarray]) -> tuple[int, int]:
    return placed[0].file, placed[0].group


def _one_ahead(pool: ThreadPoolExecutor, jobs: Iterable[partial[pa.Table]]) -> Generator[pa.Table, None, None]:
    """Results in order, each computed while the one before is used."""
    ahead: Future[pa.Table] | None = None
    for job in jobs:
        ready, ahead = ahead, pool.submit(job)
        if ready:
            yield ready.result()
    if ahead:
        yield ahead.result()


def _joined(pieces: Sequence[Rows]) -> Rows:
    pixels, labels = zip(*pieces, strict=True)
    return np.concatenate(pixels), np.concatenate(labels)
