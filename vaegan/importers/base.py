"""What every importer takes and gives: settings in, a `Source` of records out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vaegan.phantom import PhantomConfig

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""What sources call their splits, in lower case, and what we call them."""


@dataclass(frozen=True, kw_only=True)
class ParquetConfig:
    """Names of the columns to read. Only the first two must exist."""

    image: str = "image"
    """Column of image files as bytes, or of structs with `bytes` as Hugging Face writes them."""
    label: str = "label"
    """Column of labels: integers, strings, or lists of either (several findings per image)."""
    label_name: str = "label_name"
    """Column that spells integer labels out."""
    patient_id: str = "patient_id"
    """Column of patients; without one each image counts as a patient of its own."""
    split: str = "split"
    """Column of splits; without train, val or test in it the split is made anew."""
    image_id: str = "source_id"
    """Column that names images; `image_id` is tried next, then rows are numbered."""


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """What the importers need to know."""

    images: Path | None = None
    """Folder with one subfolder per class, with or without train/, val/, test/ above; or Parquet."""
    size: int = 64
    """Height and width of the stored images in pixels: the largest centred square, resampled."""
    seed: int = 0
    """Decides the phantom and every split that is made here."""
    patient_regex: str | None = None
    """Finds the patient in a file's path below --images: its groups joined by "_", or the whole match; "kermany" stands
    for the one of that set. Without it each file counts as a patient of its own."""
    parquet: ParquetConfig = field(default_factory=ParquetConfig)
    phantom: PhantomConfig = field(default_factory=PhantomConfig)


@dataclass(frozen=True, slots=True)
class Record:
    """One image as its source has it, not decoded yet.

    name: where it is, for people: path or file and row.
    labels: class names; None where the source gives no label that makes sense, and `problem` says why.
    patient_id: None where the source doesn't say.
    split: "train", "val", "test" or None.
    """

    name: str
    image: Path | bytes | np.ndarray
    image_id: str
    labels: tuple[str, ...] | None
    patient_id: str | None = None
    split: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Source:
    """What an importer found before any pixel is decoded.

    inputs: name to sha256 of everything that will be read.
    notes: sentences for the summary: what was decided or left aside, and why.
    """

    kind: str
    task: str
    classes: tuple[str, ...]
    num_records: int
    records: Callable[[], Iterator[Record]]
    inputs: dict[str, str]
    notes: list[str]
