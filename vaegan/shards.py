"""A dataset on disk: Parquet files of one row per image, a manifest that makes the folder complete."""

import dataclasses
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster import remote
from cluster.errors import UserError
from cluster.storage import file_sha256, read_json, write_json

SPLITS = ("train", "val", "test")
MANIFEST = "manifest.json"
REJECTS = "rejects.parquet"
FINDINGS = "findings.parquet"
GROUP_ROWS, GROUP_BYTES = 256, 4 * 2**20
"""Of a row group, at most: small ones can be permuted for a shuffle and read without much around them."""
FILE_ROWS, FILE_BYTES = 4096, 256 * 2**20
"""Of a file, at most, in raw pixels: enough files to deal out to workers, few enough to list."""
FORMAT_VERSION = 1


FINDINGS_SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("image_id", pa.string()),
        ("other_image_id", pa.string()),
        ("split", pa.string()),
        ("other_split", pa.string()),
        ("labels", pa.string()),
        ("other_labels", pa.string()),
        ("removed", pa.bool_()),
        ("correlation", pa.float32()),
        ("thumbnail", pa.binary()),
        ("other_thumbnail", pa.binary()),
    ]
)
"""kind: "exact" or "near" for copies of an image, "patient" or "group" for what crosses the source's splits. removed:
whether the image that `image_id` names was. correlation: of the copies' thumbnails. thumbnail, other_thumbnail: PNG."""


@dataclass
class Images:
    """Rows of a dataset in memory.

    pixels: uint8 (N, H, W, C).
    labels: multi-hot uint8 (N, K) over the dataset's K classes; K may be 0.
    patient_id, image_id, source: str, (N,); source is "real" or "synthetic".
    model, seed, index: a synthetic image's address besides its labels, (N,); None when all rows are real.
    """

    pixels: np.ndarray
    labels: np.ndarray
    patient_id: np.ndarray
    image_id: np.ndarray
    source: np.ndarray
    model: np.ndarray | None = None
    seed: np.ndarray | None = None
    index: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, rows: np.ndarray | Sequence[int] | slice) -> "Images":
        """The rows at `rows`, in that order; repeats are allowed. A slice copies nothing."""
        address = {name: getattr(self, name) for name in ("model", "seed", "index")}
        return Images(
            self.pixels[rows],
            self.labels[rows],
            self.patient_id[rows],
            self.image_id[rows],
            self.source[rows],
            **{name: None if value is None else value[rows] for name, value in address.items()},
        )

    @staticmethod
    def concatenate(parts: Sequence["Images"]) -> "Images":
        """All rows of several, in order; an address column that only some have is filled with None, -1 and -1."""

        def column(name: str, missing: Any) -> np.ndarray | None:
            values = [getattr(part, name) for part in parts]
            if all(value is None for value in values):
                return None
            return np.concatenate(
                [
                    np.full(len(part), missing, dtype=object if missing is None else np.int64)
                    if value is None
                    else value
                    for part, value in zip(parts, values, strict=True)
                ]
            )

        def joined(name: str) -> np.ndarray:
            return np.concatenate([getattr(part, name) for part in parts])

        return Images(
            joined("pixels"),
            joined("labels"),
            joined("patient_id"),
            joined("image_id"),
            joined("source"),
            column("model", None),
            column("seed", -1),
            column("index", -1),
        )

    @staticmethod
    def real(pixels: np.ndarray, labels: np.ndarray, patient_id: Sequence[str], image_id: Sequence[str]) -> "Images":
        """Rows that came from patients (or from the phantom, which stands for them)."""
        strings = lambda values: np.array(values, dtype=object)  # noqa: E731
        return Images(pixels, labels, strings(patient_id), strings(image_id), strings(["real"] * len(pixels)))


@dataclass(frozen=True)
class SplitInfo:
    """Counts of one split, and its files with their sha256."""

    num_images: int
    per_class: dict[str, int]
    num_patients: int
    files: dict[str, str]
    row_groups: dict[str, list[int]] = field(default_factory=dict)
    """Rows in each row group of each file, so that an order of rows needs no file; earlier datasets don't tell."""


@dataclass(frozen=True)
class Manifest:
    """What is in a dataset. A folder that has a manifest.json is complete, since it is written last."""

    task: str  # "multiclass" (exactly one class a row) or "multilabel"
    classes: tuple[str, ...]
    height: int
    width: int
    channels: int
    splits: dict[str, SplitInfo]
    rejects: int = 0
    tables: dict[str, str] = field(default_factory=dict)
    """Files beside those of the splits, with their sha256."""
    report: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)


def schema(*, task: str, classes: Sequence[str], height: int, width: int, channels: int) -> pa.Schema:
    """The Parquet schema: raw pixels in a fixed-size binary column (row-major H, W, C), labels multi-hot."""
    about = {
        "format": FORMAT_VERSION, "task": task, "classes": list(classes),
        "height": height, "width": width, "channels": channels,
    }  # fmt: skip
    return pa.schema(
        [
            pa.field("image", pa.binary(height * width * channels), nullable=False),
            # Parquet can't read back fixed-size lists of length 0, which an unconditional model's samples have
            pa.field("labels", pa.list_(pa.uint8(), len(classes) or -1), nullable=False),
            pa.field("patient_id", pa.string(), nullable=False),
            pa.field("image_id", pa.string(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("model", pa.string()),
            pa.field("seed", pa.int64()),
            pa.field("index", pa.int64()),
        ],
        metadata={"augray": json.dumps(about)},
    )


def to_table(images: Images, schema: pa.Schema) -> pa.Table:
    """Images as an Arrow table of `schema`."""
    count = len(images)
    flat = np.ascontiguousarray(images.pixels).reshape(count, -1)
    width = schema.field("image").type.byte_width
    if flat.shape[1] != width:
        raise ValueError(f"images of shape {images.pixels.shape[1:]} do not fill the schema's {width} bytes a row")
    labels = pa.array(np.ascontiguousarray(images.labels).reshape(-1), type=pa.uint8())
    columns = {
        "image": pa.Array.from_buffers(pa.binary(width), count, [None, pa.py_buffer(flat)]),
        "labels": pa.FixedSizeListArray.from_arrays(labels, type=schema.field("labels").type)
        if images.labels.shape[1]
        else pa.array([[]] * count, type=schema.field("labels").type),
        "patient_id": pa.array(images.patient_id, type=pa.string()),
        "image_id": pa.array(images.image_id, type=pa.string()),
        "source": pa.array(images.source, type=pa.string()),
        "model": pa.nulls(count, pa.string()) if images.model is None else pa.array(images.model, type=pa.string()),
        "seed": pa.nulls(count, pa.int64()) if images.seed is None else pa.array(images.seed, type=pa.int64()),
        "index": pa.nulls(count, pa.int64()) if images.index is None else pa.array(images.index, type=pa.int64()),
    }
    return pa.Table.from_pydict(columns, schema=schema)


def from_table(table: pa.Table) -> Images:
    """An Arrow table of `schema` as Images (one copy of the pixels)."""
    strings = lambda name: np.array(table.column(name).to_pylist(), dtype=object)  # noqa: E731
    synthetic = table.column("model").null_count < table.num_rows
    numbers = lambda name: table.column(name).fill_null(-1).to_numpy().astype(np.int64)  # noqa: E731
    return Images(
        pixels_of(table),
        labels_of(table),
        strings("patient_id"),
        strings("image_id"),
        strings("source"),
        model=strings("model") if synthetic else None,
        seed=numbers("seed") if synthetic else None,
        index=numbers("index") if synthetic else None,
    )


def pixels_of(table: pa.Table) -> np.ndarray:
    """The image column of a table of `schema`, whatever other columns it has: uint8 (N, H, W, C), one copy."""
    about = json.loads((table.schema.metadata or {})[b"augray"])
    shape = (table.num_rows, about["height"], about["width"], about["channels"])
    pixels = np.empty(shape, dtype=np.uint8)
    at = 0
    for chunk in table.column("image").chunks:
        buffer = np.frombuffer(chunk.buffers()[1], dtype=np.uint8)
        size = chunk.type.byte_width
        rows = buffer[chunk.offset * size : (chunk.offset + len(chunk)) * size]
        pixels[at : at + len(chunk)] = rows.reshape(-1, *shape[1:])
        at += len(chunk)
    return pixels


def labels_of(table: pa.Table) -> np.ndarray:
    """The label column of a table of `schema`: uint8 (N, K)."""
    num_classes = len(json.loads((table.schema.metadata or {})[b"augray"])["classes"])
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table.column("labels").chunks]
    return np.concatenate(chunks or [np.empty(0)]).astype(np.uint8).reshape(table.num_rows, num_classes)


def locate(dataset: Path, name: str, sha256: str | None = None) -> Path:
    """Where a file of a dataset is on this machine; those of a dataset at a URL are fetched into a cache first.

    Raises:
        UserError: a file at a URL is missing, can't be fetched, or hasn't the hash that the manifest gives it.
    """
    return remote.locate(dataset, name, sha256)


def is_dataset(path: Path) -> bool:
    """Whether a folder or URL has a manifest.

    Raises:
        UserError: a URL can't be reached.
    """
    try:
        return locate(path, MANIFEST).exists()
    except remote.MissingError:
        return False


def read_manifest(dataset: Path) -> Manifest:
    """The manifest of a dataset folder.

    Raises:
        UserError: there is no such folder, or no manifest in it (not a dataset, or one that was never finished).
    """
    if not is_dataset(dataset):
        found = "a folder without one" if dataset.is_dir() else "no such folder"
        url = remote.url_of(dataset)
        raise UserError(
            f"{url or dataset} isn't a dataset: expected a {MANIFEST}, found {'none there' if url else found}; "
            f"write one with: python -m vaegan.prepare --images DIR --out {dataset}"
        )
    content = read_json(locate(dataset, MANIFEST))
    try:
        splits = {name: SplitInfo(**info) for name, info in content.pop("splits").items()}
        content.pop("format")
        return Manifest(**content | {"classes": tuple(content["classes"]), "splits": splits})
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{dataset / MANIFEST} isn't the manifest of a dataset ({error}): expected what vaegan.prepare writes"
        ) from None


def dataset_sha256(dataset: Path) -> str:
    """SHA-256 of a dataset's manifest, which holds those of all its files."""
    read_manifest(dataset)
    return file_sha256(locate(dataset, MANIFEST))


def read_split(dataset: Path, split: str) -> Images:
    """All rows of one split ("train", "val" or "test").

    Raises:
        UserError: the dataset has no such split, or a file of it is missing or damaged.
    """
    info = split_info(dataset, split)
    pixels: np.ndarray | None = None
    parts: list[Images] = []
    at = 0
    for name, sha256 in info.files.items():
        path = locate(dataset, name, sha256)
        with readable(path):
            part = from_table(pq.read_table(path))
        if pixels is None:
            pixels = np.empty((info.num_images, *part.pixels.shape[1:]), dtype=np.uint8)
        if len(part) <= len(pixels) - at:  # else the sum below is wrong
            pixels[at : at + len(part)] = part.pixels
        at += len(part)
        parts.append(dataclasses.replace(part, pixels=part.pixels[:, :0]))  # pixels are in memory once, not twice
    if pixels is None or at != info.num_images:
        raise UserError(
            f"the files of {dataset}'s {split} split hold {at} images and its manifest says {info.num_images}: files "
            "of two datasets were mixed; prepare the dataset again"
        )
    return dataclasses.replace(Images.concatenate(parts), pixels=pixels)


def split_info(dataset: Path, split: str) -> SplitInfo:
    """What the manifest says of a split.

    Raises:
        UserError: the dataset has no such split.
    """
    manifest = read_manifest(dataset)
    if split not in manifest.splits:
        raise UserError(f"{dataset} has no {split} split: it has {', '.join(manifest.splits) or 'none'}")
    return manifest.splits[split]


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Arrow's complaints about a file of a dataset, while it is read in this context, become a sentence."""
    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(
            f"{file} can't be read ({' '.join(str(error).split())[:200]}): "
            "the manifest lists it; prepare the dataset again"
        ) from None


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
        self.schema = schema(task=task, classes=classes, height=height, width=width, channels=channels)
        row_bytes = height * width * channels
        self.rows_per_file = rows_per_file or max(1, min(FILE_ROWS, FILE_BYTES // row_bytes))
        self.rows_per_group = min(
            self.rows_per_file, rows_per_group or max(1, min(GROUP_ROWS, GROUP_BYTES // row_bytes))
        )
        self.classes = tuple(classes)
        self.about = dict(task=task, classes=self.classes, height=height, width=width, channels=channels)
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

    def add(self, split: str, images: Images) -> None:
        """Append rows to a split; any number of times, in any order of splits."""
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
        write_json(self.temporary / MANIFEST, {"format": FORMAT_VERSION} | dataclasses.asdict(manifest))
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
        self.num_images = 0
        self.patients: set[str] = set()

    def add(self, images: Images) -> None:
        self.counts = self.counts + images.labels.sum(axis=0, dtype=np.int64)
        self.num_images += len(images)
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
        return SplitInfo(self.num_images, per_class, len(self.patients), self.files, self.row_groups)

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
