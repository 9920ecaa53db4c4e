"""Rows of a dataset: in memory, and as an Arrow table."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

SPLITS = ("train", "val", "test")
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
"""kind: "exact" or "near" for copies of an image, "patient" or "group" for what crosses the source's splits. labels,
other_labels: joined by "|", empty for no finding, null for an image that nobody labelled. removed:
whether the image that `image_id` names was. correlation: of the copies' thumbnails. thumbnail, other_thumbnail: PNG."""


@dataclass
class Images:
    """Rows of a dataset in memory.

    pixels: uint8 (N, H, W, C).
    labels: multi-hot uint8 (N, K) over the dataset's K classes; K may be 0.
    patient_id, image_id, source: str, (N,); source is "real" or "synthetic".
    model, seed, index: a synthetic image's address besides its labels, (N,); None when all rows are real.
    labelled: whether somebody labelled a row, bool (N,); None when all rows are. Where not, `labels` says nothing (a
        dataset has zeros there); an all-zero row that is labelled is one of no finding.
    """

    pixels: np.ndarray
    labels: np.ndarray
    patient_id: np.ndarray
    image_id: np.ndarray
    source: np.ndarray
    model: np.ndarray | None = None
    seed: np.ndarray | None = None
    index: np.ndarray | None = None
    labelled: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, rows: np.ndarray | Sequence[int] | slice) -> "Images":
        """The rows at `rows`, in that order; repeats are allowed. A slice copies nothing."""
        optional = {name: getattr(self, name) for name in ("model", "seed", "index", "labelled")}
        return Images(
            self.pixels[rows],
            self.labels[rows],
            self.patient_id[rows],
            self.image_id[rows],
            self.source[rows],
            **{name: None if value is None else value[rows] for name, value in optional.items()},
        )

    @property
    def has_label(self) -> np.ndarray:
        """`labelled` as an array in any case, bool (N,)."""
        return np.ones(len(self), dtype=bool) if self.labelled is None else self.labelled

    def labelled_only(self) -> "Images":
        """The rows that have a label: these themselves where all have."""
        if self.labelled is None or self.labelled.all():
            return self if self.labelled is None else dataclasses.replace(self, labelled=None)
        return dataclasses.replace(self.take(np.flatnonzero(self.labelled)), labelled=None)

    @staticmethod
    def concatenate(parts: Sequence["Images"]) -> "Images":
        """All rows of several, in order; what only some have is filled: addresses with None, -1 and -1, and all
        rows of a part that says nothing of it are labelled."""

        def column(name: str, missing: Any) -> np.ndarray | None:
            values = [getattr(part, name) for part in parts]
            if all(value is None for value in values):
                return None
            return np.concatenate(
                [
                    np.full(len(part), missing) if value is None else value
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
            column("labelled", True),
        )

    @staticmethod
    def real(pixels: np.ndarray, labels: np.ndarray, patient_id: Sequence[str], image_id: Sequence[str]) -> "Images":
        """Rows that came from patients (or from the phantom, which stands for them)."""
        strings = lambda values: np.array(values, dtype=object)  # noqa: E731
        return Images(pixels, labels, strings(patient_id), strings(image_id), strings(["real"] * len(pixels)))


def schema(
    *, task: str, classes: Sequence[str], height: int, width: int, channels: int, unlabelled: bool = False
) -> pa.Schema:
    """The Parquet schema: raw pixels in a fixed-size binary column (row-major H, W, C), labels multi-hot.

    Args:
        unlabelled: whether there is a column `labelled`, which datasets have that hold rows without a label.
    """
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
            *([pa.field("labelled", pa.bool_(), nullable=False)] if unlabelled else []),
        ],
        metadata={"augray": json.dumps(about)},
    )


def to_table(images: Images, schema: pa.Schema) -> pa.Table:
    """Images as an Arrow table of `schema`; a row without a label has zeros for one, whatever it has in memory.

    Raises:
        ValueError: images of another shape, or rows without a label where the schema has no column to say so.
    """
    count = len(images)
    marked = "labelled" in schema.names
    if not (marked or images.has_label.all()):
        raise ValueError("rows without a label need a schema with a column `labelled`: pass unlabelled=True")
    flat = np.ascontiguousarray(images.pixels).reshape(count, -1)
    width = schema.field("image").type.byte_width
    if flat.shape[1] != width:
        raise ValueError(f"images of shape {images.pixels.shape[1:]} do not fill the schema's {width} bytes a row")
    said = images.labels if images.labelled is None else images.labels * images.labelled[:, None]
    labels = pa.array(np.ascontiguousarray(said).reshape(-1), type=pa.uint8())
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
        **({"labelled": pa.array(images.has_label, type=pa.bool_())} if marked else {}),
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
        labelled=labelled_of(table) if "labelled" in table.column_names else None,
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


def labelled_of(table: pa.Table) -> np.ndarray:
    """Which rows of a table of `schema` have a label, bool (N,): all of them where it has no such column."""
    if "labelled" not in table.column_names:
        return np.ones(table.num_rows, dtype=bool)
    return table.column("labelled").to_numpy(zero_copy_only=False).astype(bool)
