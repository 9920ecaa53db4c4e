"""CheXpert as Stanford distributes it: train.csv and valid.csv beside the folders train/ and valid/."""

import functools
import itertools
import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cluster.errors import UserError
from vaegan.importers.base import Format, ImportConfig, Record, Source, fingerprint
from vaegan.importers.columns import REMEMBERED
from vaegan.importers.folder import is_folder
from vaegan.importers.labels import Findings
from vaegan.importers.radiographs import OBSERVATIONS, not_asked_for, observations, uncertain_note
from vaegan.importers.table import broken_records
from vaegan.importers.tabular import MISSING, Rows, column_names, first_rows, listed, pieces, read_table

TABLES = {"train.csv": "train", "valid.csv": "val", "test.csv": "test"}
PATH, VIEW = "Path", "Frontal/Lateral"
ASIDES = ("Sex", VIEW, "AP/PA")
PATIENT = re.compile(r"(?:^|/)(patient\d+)(?:/|$)")
ABOVE = re.compile(r"^.*?(?=(?:train|valid|test)/patient\d)")
"""Paths begin with CheXpert-v1.0-small/ or the like, whatever the folder is called here."""
ROWS_PER_PIECE = 1024


def open_chexpert(config: ImportConfig) -> Source:
    """Every row of the tables; views that were not asked for (`config.radiographs.views`) are left out.

    Classes are the 13 observations without "No Finding", which is the absence of the others. The path names the patient
    and, from below train/ or valid/ and without its suffix, the image. Whether the files are there shows when they are
    read: the fingerprint is of the tables alone.

    Raises:
        UserError: no such folder, no table, or one that lacks paths or observations.
    """
    root = _root(config.images)
    if root is None:
        raise UserError(
            f"no train.csv or valid.csv of CheXpert in {config.images}: expected the dataset's folder; check --images"
        )
    parts = [_open_part(root / name, split, config) for name, split in TABLES.items() if _has_labels(root / name)]
    if not any((root / part.rows.path.stem).is_dir() for part in parts):
        folders = listed([f"{part.rows.path.stem}/" for part in parts])
        raise UserError(f"{root} has tables but none of the folders {folders}: expected the images there; unpack them")
    labels = observations(OBSERVATIONS, config.radiographs.uncertain, root)

    def records() -> Iterator[Record]:
        return itertools.chain.from_iterable(_records(root, part, labels, config) for part in parts)

    files = tuple(part.rows.path for part in parts)
    return Source(
        kind="chexpert",
        task="multilabel",
        classes=OBSERVATIONS,
        num_records=sum(part.rows.num_rows for part in parts),
        records=records,
        fingerprint=fingerprint(files),
        files=files,
        notes=_notes(parts, config),
    )


@dataclass(frozen=True)
class _Part:
    """One table, the split that it is, and the first row that names the same file as each."""

    rows: Rows
    split: str
    first: NDArray[np.int64]


def _open_part(file: Path, split: str, config: ImportConfig) -> _Part:
    group = config.columns.group
    rows = read_table(file, {PATH, *ASIDES, *OBSERVATIONS, *([group] if group else [])})
    observations(rows.names, config.radiographs.uncertain, file)
    if group is not None and group not in rows.names:
        raise UserError(f"{file} has no column {group!r} (it has {listed(rows.names)}): correct --columns.group")
    return _Part(rows, split, first_rows(rows.data[PATH]))


def _records(root: Path, part: _Part, labels: Findings, config: ImportConfig) -> Iterator[Record]:
    read = functools.lru_cache(REMEMBERED)(labels.read)
    group, asides = config.columns.group, [name for name in ASIDES if name in part.rows.data.column_names]
    index = -1
    for piece in pieces(part.rows.data, ROWS_PER_PIECE):
        for row in piece.to_pylist():
            index += 1
            path, problem = _path(row[PATH])
            names, unread = read(tuple(row[name] for name in OBSERVATIONS))
            if problem is None and part.first[index] != index:
                problem = f"listed twice, first in row {part.rows.number[part.first[index]]}"
            found = PATIENT.search(path)
            yield Record(
                name=path or f"{part.rows.path.name}:{part.rows.number[index]}",
                image=root / path,
                image_id=posixpath.splitext(path.partition("/")[2])[0] or f"{part.split}-{index}",
                labels=names,
                patient_id=found[1] if found else None,
                split=part.split,
                problem=problem or unread,
                left_out=not_asked_for(_view(row.get(VIEW), path), config.radiographs.views),
                group=f"{group}={row[group]}" if group and row[group] not in MISSING else None,
                asides={name: row[name] for name in asides if row[name] not in MISSING},
            )
    yield from broken_records(part.rows)


def _path(given: str) -> tuple[str, str | None]:
    """(path below the dataset's folder, None or what is wrong with it)."""
    path = posixpath.normpath(ABOVE.sub("", given.replace("\\", "/"), count=1)) if given else ""
    if not path or "\0" in path:
        return path.replace("\0", "?"), "no path"
    outside = path.startswith(("/", "../")) or path == ".."
    return path, "a path that leads out of the dataset's folder" if outside else None


def _view(view: str | None, path: str) -> str | None:
    """From the column or, where it says nothing, from the file's name."""
    told = f"{view or ''} {path.rpartition('/')[2]}".lower()
    return next((name for name in ("frontal", "lateral") if name in told), None)


def _notes(parts: list[_Part], config: ImportConfig) -> list[str]:
    notes = [note for part in parts for note in part.rows.notes]
    notes.append(uncertain_note([part.rows.data for part in parts], config.radiographs.uncertain, "images"))
    notes.append('"No Finding" is no class: it is the absence of the others.')
    notes.append(
        "Labels of train were mined from reports by a program; three radiologists labelled valid (Irvin et al. 2019)."
    )
    if config.radiographs.views != "all":
        notes.append(f"Only {config.radiographs.views} views are taken (--radiographs.views).")
    if not any(part.split == "test" for part in parts):
        notes.append("CheXpert's test images are not part of this download: a test split is made, by patient.")
    return notes


# ---------------------------------------------------------------------------------------------------------------------
# Where it is


def _root(images: Path | None) -> Path | None:
    """The folder of the tables: `images`, or the one called CheXpert-something in it."""
    if images is None or not images.is_dir():
        return None
    try:
        with os.scandir(images) as entries:
            below = sorted(e.name for e in entries if e.name.lower().startswith("chexpert") and is_folder(e))
    except OSError:
        return None
    folders = [images, *(images / name for name in below)]
    return next((folder for folder in folders if any(_has_labels(folder / name) for name in TABLES)), None)


def _has_labels(table: Path) -> bool:
    """Whether it is one of CheXpert's tables; the one that comes with the test images has no labels."""
    try:
        return table.is_file() and {PATH, "Cardiomegaly", "Pleural Effusion"} <= set(column_names(table))
    except (UserError, OSError):
        return False


def _recognises(path: Path) -> bool:
    return _root(path) is not None


FORMAT = Format("chexpert", "CheXpert's folder, with train.csv and valid.csv", _recognises, open_chexpert)
