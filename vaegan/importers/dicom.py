"""Folders of DICOM files, with labels from subfolders or from a table. `vaegan.dicom` decodes them."""

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cluster.errors import UserError
from cluster.storage import text_sha256
from vaegan.dicom import is_dicom
from vaegan.importers import keys
from vaegan.importers.base import ColumnsConfig, Format, ImportConfig, Record, Source, fingerprint
from vaegan.importers.columns import Columns, Reader, Row, find_column, find_columns, survey
from vaegan.importers.folder import SUFFIXES as IMAGE_SUFFIXES
from vaegan.importers.folder import (
    class_folders,
    files_below,
    is_file,
    paths_fingerprint,
    patient,
    patient_pattern,
    suffix,
)
from vaegan.importers.table import broken_records
from vaegan.importers.tabular import Rows, column_names, first_rows, is_table, read_table

INDEX = "DICOMDIR"
"""Table of contents of a medium: DICOM, but no image."""
USUAL_KEYS = ("sopinstanceuid", "imageid", "studyinstanceuid", "patientid")
"""Columns that name files where none is called path or the like; compared without case and underscores."""
FILES_LOOKED_AT = 64
MAX_FOLDERS = 100
HEADERS_LOOKED_AT = 8
"""Of a class's files, spread over all of them."""
ROWS_AT_ONCE = 4096
NO_ROW = "no row in the table of labels"
NO_FILE = "the table names a file that isn't there"


def open_dicom(config: ImportConfig) -> Source:
    """Every DICOM file below `config.images`, at any depth.

    Labels are those of `config.dicom.labels`, else the subfolders' names, with or without train/, val/, test/ above.
    Patients and names of images are read from the headers with the pixels, unless the table has a column of patients
    or the user gave a pattern. All names may identify people: none of them goes into notes.

    Raises:
        UserError: no such folder, no DICOM files in it, or a table that can't be read or lacks a column.
    """
    root = config.images
    if root is None or not root.is_dir():
        raise UserError(f"no folder {root}: expected one with DICOM files at any depth; check --images")
    return _open_with_table(root, config) if config.dicom.labels is not None else _open_with_folders(root, config)


def may_be_dicom(path: str) -> bool:
    """By its name: a usual suffix or none. What a UID has behind its last dot is no suffix."""
    ending = suffix(path)
    return (ending in keys.SUFFIXES or ending[1:].isdigit()) and path.rpartition("/")[2].upper() != INDEX


def _recognises(path: Path) -> bool:
    """Whether most images among the first files are DICOM."""
    if path.is_file():
        return _has_magic(path)
    files = (Path(where, name) for where, _, names in os.walk(path) for name in names if not name.startswith("."))
    some = list(islice(files, FILES_LOOKED_AT))
    found = sum(may_be_dicom(file.name) and _has_magic(file) for file in some)
    return found > sum(suffix(file.name) in IMAGE_SUFFIXES for file in some)


def _has_magic(path: Path) -> bool:
    try:
        if not path.is_file():  # reading a pipe may never end
            return False
        with open(path, "rb") as file:
            return is_dicom(file.read(132))
    except OSError:
        return False


# ---------------------------------------------------------------------------------------------------------------------
# Labels from subfolders


def _open_with_folders(root: Path, config: ImportConfig) -> Source:
    folders = class_folders(root, config.unlabelled)
    files = [(split, label, path) for split, label, folder in folders for path in files_below(root, folder)]
    images = [found for found in files if may_be_dicom(found[2])]
    if not images:
        raise _no_class(root, [path for *_, path in files])
    classes = tuple(sorted({label for _, label, _ in folders}))
    if len(classes) > MAX_FOLDERS or _folders_are_patients(root, images):
        raise UserError(
            f"{root} has {len(classes)} subfolders, which seem to be one for each patient: expected one for each "
            "class, since their names stay in the dataset; name a table of labels with --dicom.labels"
        )
    pattern, notes = _patients(config, [path for *_, path in images])
    beside = [entry.name for entry in os.scandir(root) if is_file(entry)]
    notes += _ignored([path for *_, path in files if not may_be_dicom(path)] + beside)

    def records() -> Iterator[Record]:
        return (
            Record(path, root / path, path, (label,), patient(pattern, path), split) for split, label, path in images
        )

    return Source(
        kind="dicom",
        task="multiclass",
        classes=classes,
        num_records=len(images),
        records=records,
        fingerprint=paths_fingerprint(root, [path for *_, path in images]),
        inputs={"labels": text_sha256("\n".join(f"{split}/{label}" for split, label, _ in images))},
        notes=notes,
        identifying=True,
        dicom=True,
    )


def _folders_are_patients(root: Path, images: Sequence[tuple[str | None, str, str]]) -> bool:
    """Whether each class has films of one patient alone, and none of another class's: an archive, not classes."""
    paths: dict[str, list[str]] = {}
    for _, label, path in images:
        paths.setdefault(label, []).append(path)
    found = []
    for some in paths.values():
        spread = {some[i] for i in np.linspace(0, len(some) - 1, HEADERS_LOOKED_AT).round().astype(int)}
        found.append({patient for path in spread if (patient := _patient_id(root / path))})
    known = [patients for patients in found if patients]
    return len(known) > 1 and all(len(p) == 1 for p in known) and len(set.union(*known)) == len(known)


def _patient_id(file: Path) -> str | None:
    return keys.identifiers(file).get("PatientID")


def _no_class(root: Path, below: Sequence[str]) -> UserError:
    direct = [entry.name for entry in os.scandir(root) if is_file(entry)]
    tables = sorted(name for name in direct if is_table(Path(name)))
    images = sum(map(may_be_dicom, direct))
    if images:
        table = str(root / tables[0]) if tables else "TABLE"
        return UserError(
            f"{root} has {images} DICOM files in it and none in subfolders: expected a subfolder for each class, or a "
            f"table of labels; pass --dicom.labels {table}"
        )
    found = _counts([*below, *direct])
    return UserError(
        f"no DICOM files in the subfolders of {root} (found {found or 'no files'}): expected one subfolder per class "
        "with .dcm files in it; check --images"
    )


def _counts(paths: Iterable[str]) -> str:
    """How many files of which suffix. A suffix may be a piece of a name, so only short ones are repeated."""
    known = (INDEX if path.rpartition("/")[2].upper() == INDEX else suffix(path) or "no suffix" for path in paths)
    counts = Counter(name if len(name) <= 9 else "other" for name in known)
    return ", ".join(f"{count} {name}" for name, count in counts.most_common(5))


def _ignored(paths: Sequence[str]) -> list[str]:
    visible = [path for path in paths if not path.rpartition("/")[2].startswith(".")]
    return [f"Files that are not DICOM, or lie outside a class, were ignored: {_counts(visible)}."] if visible else []


def _patients(config: ImportConfig, paths: Sequence[str]) -> tuple[re.Pattern[str] | None, list[str]]:
    """The user's pattern, if any, and a note without any name in it."""
    if config.patient_regex is None:
        return None, ["Patients and image_ids are the headers' PatientID and SOPInstanceUID."]
    pattern, _ = patient_pattern(config.patient_regex, paths)
    missed = sum(patient(pattern, path) is None for path in paths)
    return pattern, [
        f"Patients were read from the paths by --patient-regex; {missed} of {len(paths)} have none there, and are the "
        "headers' PatientID."
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Labels from a table


def _open_with_table(root: Path, config: ImportConfig) -> Source:
    path = config.dicom.labels
    assert path is not None
    if not path.is_file():
        raise UserError(f"no file {path}: expected a CSV or Parquet table of labels; check --dicom.labels")
    found = files_below(root)
    files = [each for each in found if may_be_dicom(each)]
    if not files:
        raise UserError(f"no DICOM files in {root} (found {_counts(found) or 'no files'}); check --images")
    rows, reader = _read(path, config.columns, config.keep_unlabelled)
    names = keys.comparable(rows.data.column(reader.columns.image))
    match = keys.match(root, files, names)
    first = first_rows(names)
    lost = _unmatched(names, first, match.row)
    contradicted = _contradicted(rows.data.select(_deciding(reader.columns)), first)
    pattern, notes = _patients(config, files)
    if reader.columns.patient_id:
        notes = [f"Patients are those of the table's column {reader.columns.patient_id!r}, where it isn't blank."]
    notes += [*rows.notes, *reader.notes, *_matched(match, len(lost), reader.columns.image)]
    others = [each for each in found if not may_be_dicom(each) and root / each != path]

    def records() -> Iterator[Record]:
        for name, row, problem in _rows_of_files(files, match, contradicted, rows, reader):
            yield Record(
                name=name,
                image=root / name,
                image_id=name,
                labels=None if row is None or problem else row.labels,
                patient_id=patient(pattern, name) or (row.patient_id if row else None),
                split=row.split if row else None,
                problem=problem or (row.problem if row else None),
                group=row.group if row else None,
                asides=row.asides if row else {},
            )
        for i in lost:
            where = f"{path.name}:{rows.number[i]}"
            yield Record(
                where, b"", where, None, problem=NO_FILE if names[i].as_py() else "no name of a file in the row"
            )
        yield from broken_records(rows)

    return Source(
        kind="dicom",
        task=reader.labels.task,
        classes=reader.labels.classes,
        num_records=len(files) + len(lost) + len(rows.broken),
        records=records,
        fingerprint=fingerprint([path, *(root / each for each in files)]),
        files=(path,),
        notes=notes + _ignored(others),
        identifying=True,
        dicom=True,
    )


def _read(path: Path, wanted: ColumnsConfig, keep_unlabelled: bool) -> tuple[Rows, Reader]:
    present = column_names(path)
    if find_column(present, wanted, "path") is None and wanted.path == ColumnsConfig().path:
        plain = {re.sub(r"[\s_-]+", "", name.lower()): name for name in reversed(present)}
        key = next((plain[name] for name in USUAL_KEYS if name in plain), wanted.path)
        wanted = dataclasses.replace(wanted, path=key)
    columns = find_columns(present, wanted, "path", path)
    if columns.patient_id == columns.image:  # what a file is found by; its header says whose it is
        columns = dataclasses.replace(columns, patient_id=None)
    rows = read_table(path)
    if columns.image not in rows.data.column_names or pa.types.is_list(rows.data.column(columns.image).type):
        raise UserError(
            f"column {columns.image!r} of {path} holds no text: expected names of files; see --columns.path"
        )
    return rows, survey([rows.data], present, columns, wanted, path, keep_unlabelled=keep_unlabelled)


def _deciding(columns: Columns) -> list[str]:
    some = (columns.label, *columns.findings, columns.patient_id, columns.split, columns.group)
    return [name for name in dict.fromkeys(some) if name is not None]


def _contradicted(deciding: pa.Table, first: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Of the first row with each key, whether a later one says something else, bool (N,). `first`: see `first_rows`."""
    found = np.zeros(len(first), bool)
    for name in deciding.column_names:
        column = deciding.column(name)
        if pa.types.is_list(column.type):
            column = pc.binary_join(column, "\0")
        same = first_rows(pc.fill_null(column, ""))
        found[first[same != same[first]]] = True
    return found


def _unmatched(names: pa.ChunkedArray, first: NDArray[np.int64], used: NDArray[np.int64]) -> NDArray[np.int64]:
    """First rows of names that no file has, and rows without a name."""
    rows = np.arange(len(first))
    blank = pc.equal(pc.fill_null(names, ""), "").to_numpy(zero_copy_only=False)
    return np.union1d(np.setdiff1d(rows[first == rows], used), rows[blank])


def _matched(match: keys.Match, num_lost: int, column: str) -> list[str]:
    found = int((match.row >= 0).sum())
    notes = [f"The table's column {column!r} holds {match.kind}: {found} of {len(match.row)} files have a row."]
    if num_lost:
        notes.append(f"{num_lost} of the table's entries name no file that is there.")
    if match.ambiguous.any():
        notes.append(f"{match.ambiguous.sum()} files share their name with others: no row is surely theirs.")
    return notes


def _rows_of_files(
    files: Sequence[str], match: keys.Match, contradicted: NDArray[np.bool_], rows: Rows, reader: Reader
) -> Iterator[tuple[str, Row | None, str | None]]:
    """Of each file its path, what its row says (None: it has none), and what is wrong besides."""
    for start in range(0, len(files), ROWS_AT_ONCE):
        some = slice(start, start + ROWS_AT_ONCE)
        positions = match.row[some]
        read = reader.rows(rows.data.take(pa.array(positions[positions >= 0])))
        for name, position, ambiguous in zip(files[some], positions, match.ambiguous[some], strict=True):
            row = next(read) if position >= 0 else None
            problem = None
            if row is None:
                problem = NO_ROW
            elif ambiguous:
                problem = "several files have the name in the table: expected paths below --images there"
            elif contradicted[position]:
                problem = "the table's rows for it contradict each other"
            yield name, row, problem


FORMAT = Format("dicom", "a folder of DICOM files", _recognises, open_dicom)
