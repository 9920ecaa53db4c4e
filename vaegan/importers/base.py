"""What every importer takes and gives: settings in, a `Source` of records out, wrapped in a `Format`."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from vaegan.phantom import PhantomConfig

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "validate": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""What sources call their splits, in lower case, and what we call them."""


@dataclass(frozen=True, kw_only=True)
class ColumnsConfig:
    """Names of a table's columns, in CSV and Parquet alike. An image and a label must be there, the rest may. Where one
    isn't there, the usual names are tried (file, class, PatientID, ...); one that you give is never guessed at."""

    image: str = "image"
    """Parquet: column of image files as bytes, or of structs with `bytes` as Hugging Face writes them."""
    path: str = "path"
    """Column of image files by path, where no column holds their bytes."""
    label: str = "label"
    """Column of labels: integers, strings, lists of either, or several in one string (see `separator`)."""
    label_name: str = "label_name"
    """Column that spells integer labels out."""
    findings: tuple[str, ...] = ()
    """Columns of 0 and 1, one for each class, instead of one column of labels; several may be 1 (multilabel)."""
    separator: str = "|"
    """What stands between several labels in one string; a table with it anywhere is multilabel."""
    patient_id: str = "patient_id"
    """Column of patients; without one each image counts as a patient of its own."""
    split: str = "split"
    """Column of splits; without train, val or test in it the split is made anew."""
    image_id: str = "source_id"
    """Column that names images; `image_id` is tried next, then the path, then rows are numbered."""
    group: str | None = None
    """A further column whose equal values stay in one split, as patients do: a hospital, a scanner, a study."""


@dataclass(frozen=True, kw_only=True)
class DicomConfig:
    """How DICOM files are read."""

    window: int = 0
    """Which of several windows (VOI LUTs) to apply, counted from 0."""
    burned_in: Literal["reject", "keep"] = "reject"
    """Images whose header says that text is burnt into the pixels (BurnedInAnnotation = YES). Text is not looked for in
    the pixels themselves."""
    labels: Path | None = None
    """CSV or Parquet table of labels. Its path column (see --columns) holds a file's path below --images, its name with
    or without suffix, or its SOPInstanceUID, StudyInstanceUID or PatientID. Without it, subfolders are the classes."""


@dataclass(frozen=True, kw_only=True)
class RadiographConfig:
    """Choices that tables of chest X-rays with mined labels ask for: CheXpert and MIMIC-CXR-JPG."""

    uncertain: Literal["zeros", "ones", "reject"] = "zeros"
    """What -1 (uncertain) becomes: not present, present, or the image is rejected. A blank is always: not present."""
    views: Literal["frontal", "lateral", "all"] = "frontal"
    """Which views to take; the others are left out, and counted."""


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """What the importers need to know."""

    images: Path | None = None
    """Where the images are; `source` lists what it may be."""
    merge: tuple[Path, ...] = ()
    """More datasets of AugRay's, to be merged with the one at --images."""
    size: int = 64
    """Height and width of the stored images in pixels."""
    seed: int = 0
    """Decides the phantom, every draw and every split that is made here."""
    patient_regex: str | None = None
    """Finds the patient in a file's path below --images: its groups joined by "_", or the whole match; "kermany" stands
    for the one of that set, which is recognised. Without it each file counts as a patient of its own."""
    unlabelled: tuple[str, ...] = ()
    """Classes that are none: images in a folder of this name, or with this label in a table, count as ones that nobody
    labelled. A generator learns from them, too; a folder of them may lie beside train/, val/ and test/."""
    keep_unlabelled: bool = False
    """Take images without a label (a blank in a table's column, in all of a row's findings, or no row at all in a table
    of DICOM labels) as unlabelled, instead of rejecting them."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    dicom: DicomConfig = field(default_factory=DicomConfig)
    radiographs: RadiographConfig = field(default_factory=RadiographConfig)
    phantom: PhantomConfig = field(default_factory=PhantomConfig)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a synthetic image came from, besides its labels."""

    model: str | None
    seed: int
    index: int


@dataclass(frozen=True, slots=True)
class Record:
    """One image as its source has it, not decoded yet. Goes to another process with pickle.

    name: where it is, for people: path or file and row.
    image: a file, a file's bytes, or pixels (H, W) or (H, W, C) of any number type.
    labels: class names; None where the source gives no label that makes sense, and `problem` says why; None without a
        problem is an image that nobody labelled, of which use can be made.
    patient_id: None where the source doesn't say (a DICOM file's own is read with its pixels).
    split: "train", "val", "test" or None.
    problem: why this image can't be used, in words; it becomes a reject.
    left_out: why this image was not asked for, in words (a lateral view); it is counted, and is no reject.
    group: what must stay in one split besides the patient; None where nobody asked.
    asides: what columns that decide nothing say of it, name to value: looked at for second opinions and shortcuts.
    synthetic: its address, where it is no patient's.
    """

    name: str
    image: Path | bytes | np.ndarray
    image_id: str
    labels: tuple[str, ...] | None
    patient_id: str | None = None
    split: str | None = None
    problem: str | None = None
    left_out: str | None = None
    group: str | None = None
    asides: Mapping[str, str] = field(default_factory=dict)
    synthetic: Address | None = None


@dataclass(frozen=True)
class Source:
    """What an importer found before any pixel is decoded.

    kind: the format's name.
    num_records: how many records `records` will give.
    records: all of them, always the same ones in the same order, one after the other without holding them all.
    fingerprint: of names, sizes and times of the files that will be read (see `fingerprint`), or of the tables alone
        where they list hundreds of thousands: cheap, equal as long as nothing was touched.
    files: whole files that decide the records (tables, archives, Parquet), hashed when the dataset is written. Images
        in files of their own (`Record.image` is a path) are hashed as they are decoded, and need not be named here.
    inputs: name to sha256 of what is no file.
    notes: sentences for the summary: what was decided or left aside, and why.
    identifying: whether names and paths tell who a patient is; they are hashed then, whether the user asks or not.
    dicom: whether DICOM files are expected. Elsewhere one is a reject.
    """

    kind: str
    task: Literal["multiclass", "multilabel"]
    classes: tuple[str, ...]
    num_records: int
    records: Callable[[], Iterator[Record]]
    fingerprint: str
    files: tuple[Path, ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    identifying: bool = False
    dicom: bool = False


@dataclass(frozen=True)
class Format:
    """A kind of source: what --source calls it, what it looks like, and how it is opened.

    summary: half a sentence on what lies on disk, for --help and for the error when nothing fits.
    recognises: whether a path that exists is of this kind, at the price of a look.
    open: see `Source`.

    `open` raises UserError: what is there can't be this kind of source, in one sentence.
    """

    name: str
    summary: str
    recognises: Callable[[Path], bool]
    open: Callable[[ImportConfig], Source]


def fingerprint(paths: Iterable[Path]) -> str:
    """One hash over names, sizes and times of files; a file that is gone or can't be looked at counts as such."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            found = os.stat(path)
            digest.update(f"{path.name} {found.st_size} {found.st_mtime_ns}\n".encode(errors="surrogateescape"))
        except OSError as error:
            digest.update(f"{path.name} {error.strerror}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
