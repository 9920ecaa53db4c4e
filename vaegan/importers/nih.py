"""NIH ChestX-ray14 as distributed: images_001/images/ and on, Data_Entry_2017.csv, the lists of the official split."""

import functools
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cluster.errors import UserError
from vaegan.importers.base import Format, ImportConfig, Record, Source, fingerprint
from vaegan.importers.columns import REMEMBERED
from vaegan.importers.folder import SUFFIXES, is_file, is_folder, suffix
from vaegan.importers.labels import SeparatedLabels
from vaegan.importers.table import broken_records
from vaegan.importers.tabular import MISSING, Rows, column_names, first_rows, listed, pieces, read_table

CLASSES = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
"""In the order of Wang et al. 2017 and what came after it. "No Finding" is none of them."""
IMAGE, LABELS, PATIENT = "Image Index", "Finding Labels", "Patient ID"
ASIDES = ("View Position", "Patient Gender", "Patient Sex")
TABLE = re.compile(r"data_entry_2017.*\.csv(\.gz)?", re.IGNORECASE)
LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
NO_FILE = "no such file in the folders of images"
ROWS_PER_PIECE = 1024


def open_nih(config: ImportConfig) -> Source:
    """Every row of the table, then every image that no row names.

    Images may lie in images_001/images/ and on, in one images/, or beside the table; they are found by name, whatever
    their suffix. image_id is the name without it. The split is the official one, by patient, where both lists are
    there; a validation split is carved out of train when the dataset is made.

    Raises:
        UserError: no such folder, no table or images in it, or a table that lacks columns.
    """
    root = config.images
    tables = _tables(root) if root is not None else []
    if root is None or not tables:
        raise UserError(f"no Data_Entry_2017.csv in {root}: expected the folder of NIH ChestX-ray14; check --images")
    files = _list_images(root)
    if not len(files):
        raise UserError(
            f"no images in {root}: expected images_001/images/ and on, or images/; unpack the archives there"
        )
    rows = _read(tables[-1], config.columns.group)
    split, notes = _splits(root, _stems(rows.data[IMAGE]))
    join = _join(rows, files, split)

    def records() -> Iterator[Record]:
        yield from _records(root, rows, files, join, config.columns.group)
        yield from _records_without_row(root, rows, files, join)
        yield from broken_records(rows)

    read = (rows.path, *(root / name for name in LISTS.values() if (root / name).is_file()))
    return Source(
        kind="nih",
        task="multilabel",
        classes=CLASSES,
        num_records=rows.num_rows + len(join.without_row),
        records=records,
        fingerprint=hashlib.sha256((fingerprint(read) + files.digest).encode()).hexdigest(),
        files=read,
        notes=[*rows.notes, *_notes(tables, rows, join), *notes],
    )


# ---------------------------------------------------------------------------------------------------------------------
# What is there


@dataclass(frozen=True)
class _Files:
    """Image files in the order of folders and names.

    folders: below the dataset's, "" for itself; `folder` is each file's index there.
    names: bytes, as the file system has them; stems: without suffix, as text.
    digest: of names, sizes and times.
    """

    folders: tuple[str, ...]
    folder: NDArray[np.int64]
    names: pa.Array
    stems: pa.Array
    digest: str

    def __len__(self) -> int:
        return len(self.names)

    def path(self, i: int) -> str:
        """Below the dataset's folder."""
        return os.path.join(self.folders[self.folder[i]], os.fsdecode(self.names[i].as_py()))


def _list_images(root: Path) -> _Files:
    digest, folders = hashlib.sha256(), _image_folders(root)
    names, counts = [], []
    for folder in folders:
        found = _files_in(root / folder)
        digest.update(f"{folder}/\n".encode(errors="surrogateescape"))
        digest.update("".join(f"{name} {size} {time}\n" for name, size, time in found).encode(errors="surrogateescape"))
        names.append(pa.array([os.fsencode(name) for name, *_ in found], pa.binary()))
        counts.append(len(found))
    stems = [pa.array([os.path.splitext(v.decode(errors="replace"))[0] for v in part.to_pylist()]) for part in names]
    return _Files(
        tuple(folders),
        np.repeat(np.arange(len(folders)), counts),
        pa.concat_arrays(names),
        pa.concat_arrays([part.cast(pa.string()) for part in stems]),
        digest.hexdigest(),
    )


def _image_folders(root: Path) -> list[str]:
    """The folder itself, those in it that are called images-something, and those in them that are again."""
    top = _subfolders(root)
    return ["", *(below for name in top for below in (name, *(f"{name}/{n}" for n in _subfolders(root / name))))]


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.name.lower().startswith("images") and is_folder(e))


def _files_in(folder: Path) -> list[tuple[str, int, int]]:
    """(name, size in bytes, time in ns) of image files, sorted."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if suffix(entry.name) in SUFFIXES and is_file(entry):
                about = entry.stat()
                found.append((entry.name, about.st_size, about.st_mtime_ns))
    return sorted(found)


def _tables(root: Path) -> list[Path]:
    """Tables of labels, the newest last: Data_Entry_2017.csv, Data_Entry_2017_v2020.csv."""
    try:
        with os.scandir(root) as entries:
            return [root / name for name in sorted(e.name for e in entries if TABLE.fullmatch(e.name) and is_file(e))]
    except OSError:
        return []


def _read(file: Path, group: str | None) -> Rows:
    rows = read_table(file, {IMAGE, LABELS, PATIENT, *ASIDES, *([group] if group else [])})
    for name in (IMAGE, LABELS, PATIENT, *([group] if group else [])):
        if name not in rows.names:
            hint = "correct --columns.group" if name == group else "download it again, or use --source table"
            raise UserError(f"{file} has no column {name!r} (it has {listed(rows.names)}): {hint}")
    return rows


def _stems(names: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.replace_substring_regex(names, r"\.[A-Za-z0-9]+$", "")


# ---------------------------------------------------------------------------------------------------------------------
# What belongs together


@dataclass(frozen=True)
class _Join:
    """Rows and images.

    file: of each row the index of its image, -1 for none.
    first: of each row the first of the same name.
    split: of each row an index into `SPLITS`; None where there is no split.
    without_row: indices of images that belong to no row.
    twice: of each image the first of the same name.
    """

    file: NDArray[np.int64]
    first: NDArray[np.int64]
    split: NDArray[np.int64] | None
    without_row: NDArray[np.int64]
    twice: NDArray[np.int64]


SPLITS = ((None, "in neither list of the split"), ("train", None), ("test", None), (None, "in both lists of the split"))


def _join(rows: Rows, files: _Files, split: NDArray[np.int64] | None) -> _Join:
    stems = _stems(rows.data[IMAGE])
    twice = first_rows(files.stems)
    has_row = pc.is_in(files.stems, value_set=stems.combine_chunks()).to_numpy(zero_copy_only=False)
    without_row = np.flatnonzero(~has_row | (twice != np.arange(len(files))))
    file = pc.fill_null(pc.index_in(stems, value_set=files.stems), -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return _Join(file, first_rows(stems), split, without_row, twice)


def _splits(root: Path, stems: pa.ChunkedArray) -> tuple[NDArray[np.int64] | None, list[str]]:
    """An index into `SPLITS` for each row, None without both lists; and notes."""
    there = [name for name in LISTS.values() if (root / name).is_file()]
    if len(there) < len(LISTS):
        lacking = ", ".join(name for name in LISTS.values() if name not in there)
        return None, [f"Without {lacking} the official split is unknown: one is made, by patient."]
    split, notes = np.zeros(len(stems), np.int64), []
    for weight, file in enumerate((root / name for name in LISTS.values()), start=1):
        listed_stems = _stems(pa.chunked_array([_lines(file)]))
        split += weight * pc.is_in(stems, value_set=listed_stems.combine_chunks()).to_numpy(zero_copy_only=False)
        unknown = len(listed_stems) - (pc.sum(pc.is_in(listed_stems, value_set=stems.combine_chunks())).as_py() or 0)
        if unknown:
            notes.append(f"{unknown} names in {file.name} are not in the table: they were ignored.")
    return split, [
        *notes,
        "The official split is kept: train_val_list.txt is train, test_list.txt is test, by patient.",
    ]


def _lines(file: Path) -> pa.Array:
    try:
        text = file.read_bytes().decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise UserError(f"{file} can't be read ({error.strerror}): expected a name a line; check the file") from None
    return pa.array([line.strip() for line in text.splitlines() if line.strip()], pa.string())


def _notes(tables: list[Path], rows: Rows, join: _Join) -> list[str]:
    notes = [
        "Labels were mined from radiology reports by a program, right in more than 90% by its authors' estimate "
        "(Wang et al. 2017); radiologists who look at the images disagree more often."
    ]
    if len(tables) > 1:
        notes.append(f"Labels are from {rows.path.name}; {listed([file.name for file in tables[:-1]])} was not read.")
    absent = int(np.sum(join.file < 0))
    if absent:
        notes.append(
            f"{absent} of the table's {len(join.file)} images are not there: unpack the other archives to have all."
        )
    return notes


# ---------------------------------------------------------------------------------------------------------------------
# Records


def _records(root: Path, rows: Rows, files: _Files, join: _Join, group: str | None) -> Iterator[Record]:
    read = functools.lru_cache(REMEMBERED)(SeparatedLabels(CLASSES, "|", blank=False).read)
    asides = [name for name in ASIDES if name in rows.data.column_names]
    index = -1
    for piece in pieces(rows.data, ROWS_PER_PIECE):
        for row in piece.to_pylist():
            index += 1
            file, number = join.file[index], rows.number[index]
            name = row[IMAGE].replace("\0", "?")
            path = files.path(file) if file >= 0 else name
            labels, unread = read(row[LABELS].replace("Pleural Thickening", "Pleural_Thickening"))
            split, unlisted = SPLITS[join.split[index]] if join.split is not None else (None, None)
            problem = None if file >= 0 else NO_FILE
            if join.first[index] != index:
                problem = f"listed twice, first in row {rows.number[join.first[index]]}"
            yield Record(
                name=_text(path) if file >= 0 else f"{rows.path.name}:{number} {name}",
                image=root / path,
                image_id=os.path.splitext(name)[0] or f"{rows.path.name}:{number}",
                labels=labels,
                patient_id=row[PATIENT] or None,
                split=split,
                problem=problem or unlisted or unread,
                group=f"{group}={row[group]}" if group and row[group] not in MISSING else None,
                asides={name: row[name] for name in asides if row[name] not in MISSING},
            )


def _records_without_row(root: Path, rows: Rows, files: _Files, join: _Join) -> Iterator[Record]:
    """Images that no row names, or whose name another image has, too."""
    for i in join.without_row:
        path = files.path(i)
        problem = f"no row in {rows.path.name}"
        if join.twice[i] != i:
            problem = "a second file of that name, in another folder or with another suffix"
        yield Record(_text(path), root / path, _text(os.path.splitext(path)[0]), None, problem=problem)


def _text(path: str) -> str:
    """Bytes that are no text become marks: a dataset holds text."""
    return os.fsencode(path).decode(errors="replace")


def _recognises(path: Path) -> bool:
    try:
        return path.is_dir() and any({IMAGE, LABELS} <= set(column_names(file)) for file in _tables(path))
    except (UserError, OSError):
        return False


FORMAT = Format("nih", "NIH ChestX-ray14's folder, with Data_Entry_2017.csv", _recognises, open_nih)
