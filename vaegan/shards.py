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

from cluster.errors import UserError
from cluster.storage import file_sha256, read_json, write_json

SPLITS = ("train", "val", "test")
MANIFEST = "manifest.json"
REJECTS = "rejects.parquet"
ROW_GROUP = 256  # small groups can be permuted for a shuffle and read without much around them
FORMAT_VERSION = 1


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

    def take(self, rows: np.ndarray | Sequence[int]) -> "Images":
        """The rows at `rows`, in that order; repeats are allowed."""
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


def read_manifest(dataset: Path) -> Manifest:
    """The manifest of a dataset folder.

    Raises:
        UserError: there is no such folder, or no manifest in it (not a dataset, or one that was never finished).
    """
    if not (dataset / MANIFEST).exists():
        found = "a folder without one" if dataset.is_dir() else "no such folder"
        raise UserError(
            f"{dataset} isn't a dataset: expected a {MANIFEST}, found {found}; "
            f"write one with: python -m vaegan.prepare --images DIR --out {dataset}"
        )
    content = read_json(dataset / MANIFEST)
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
    return file_sha256(dataset / MANIFEST)


def read_split(dataset: Path, split: str) -> Images:
    """All rows of one split ("train", "val" or "test").

    Raises:
        UserError: the dataset has no such split, or a file of it is missing or damaged.
    """
    tables = []
    for name in split_info(dataset, split).files:
        with readable(dataset / name):
            tables.append(pq.read_table(dataset / name))
    return from_table(pa.concat_tables(tables))


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
    """Writes a dataset; nothing has its final name until `finish`, and the manifest comes last.

    A context manager: leaving it without `finish` removes what was written.

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
        rows_per_file: int = 4096,
    ) -> None:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path} exists already: expected no such folder; choose another --out or remove it")
        self.path = path
        self.schema = schema(task=task, classes=classes, height=height, width=width, channels=channels)
        self.rows_per_file = rows_per_file
        self.about = dict(task=task, classes=tuple(classes), height=height, width=width, channels=channels)
        self.temporary = path.with_name(f".{path.name}.partial")
        self.pending: dict[str, list[Images]] = {}
        self.files: dict[str, dict[str, str]] = {}
        self.counts: dict[str, np.ndarray] = {}
        self.patients: dict[str, set[str]] = {}
        self.rejects: list[tuple[str, str]] = []

    def __enter__(self) -> Self:
        shutil.rmtree(self.temporary, ignore_errors=True)  # what a killed run left
        self.temporary.mkdir(parents=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        shutil.rmtree(self.temporary, ignore_errors=True)

    def add(self, split: str, images: Images) -> None:
        """Append rows to a split; any number of times, in any order of splits."""
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is none of {SPLITS}")
        self.counts[split] = self.counts.get(split, 0) + images.labels.sum(axis=0, dtype=np.int64)
        self.patients.setdefault(split, set()).update(images.patient_id)
        self.pending.setdefault(split, []).append(images)
        while sum(map(len, self.pending[split])) >= self.rows_per_file:
            self._write(split, self.rows_per_file)

    def reject(self, path: str, reason: str) -> None:
        """Note an input that could not be used."""
        self.rejects.append((path, reason))

    def finish(self, *, report: dict[str, Any] | None = None, provenance: dict[str, Any] | None = None) -> Manifest:
        """Write what is pending, the rejects and the manifest, and give the folder its final name."""
        for split in [name for name, parts in self.pending.items() if parts]:
            self._write(split, self.rows_per_file)
        rejects = pa.table({"path": [r[0] for r in self.rejects], "reason": [r[1] for r in self.rejects]},
                           schema=pa.schema([("path", pa.string()), ("reason", pa.string())]))  # fmt: skip
        pq.write_table(rejects, self.temporary / REJECTS)
        manifest = Manifest(
            **self.about,  # type: ignore[arg-type]
            splits={name: self._split_info(name) for name in SPLITS if name in self.files},
            rejects=len(self.rejects),
            report=report or {},
            provenance=provenance or {},
        )
        write_json(self.temporary / MANIFEST, {"format": FORMAT_VERSION} | dataclasses.asdict(manifest))
        if self.path.exists():
            self.path.rmdir()  # empty, as __init__ saw
        self.temporary.rename(self.path)
        return manifest

    def _split_info(self, split: str) -> SplitInfo:
        classes: Iterable[str] = self.about["classes"]  # type: ignore[assignment]
        per_class = dict(zip(classes, map(int, self.counts[split]), strict=True))
        num_images = sum(pq.read_metadata(self.temporary / name).num_rows for name in self.files[split])
        return SplitInfo(num_images, per_class, len(self.patients[split]), self.files[split])

    def _write(self, split: str, rows: int) -> None:
        images = Images.concatenate(self.pending[split])
        part, rest = images.take(np.arange(min(rows, len(images)))), images.take(np.arange(rows, len(images)))
        self.pending[split] = [rest] if len(rest) else []
        if not len(part):
            return
        files = self.files.setdefault(split, {})
        name = f"{split}-{len(files):05d}.parquet"
        path = self.temporary / name
        try:
            pq.write_table(to_table(part, self.schema), path, compression="zstd", row_group_size=ROW_GROUP)
        except OSError as error:
            error.filename = error.filename or str(self.path)  # Arrow doesn't say where the disk is full
            raise
        files[name] = file_sha256(path)
