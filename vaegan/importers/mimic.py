"""MIMIC-CXR-JPG as PhysioNet distributes it: three tables beside files/p10/p10000032/s50414267/<dicom_id>.jpg."""

import functools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cluster.errors import UserError
from vaegan.importers.base import SPLIT_NAMES, Format, ImportConfig, Record, Source, fingerprint
from vaegan.importers.columns import REMEMBERED
from vaegan.importers.folder import is_file
from vaegan.importers.labels import Findings
from vaegan.importers.radiographs import OBSERVATIONS, not_asked_for, observations, uncertain_note
from vaegan.importers.table import broken_records
from vaegan.importers.tabular import MISSING, Rows, first_rows, listed, pieces, read_table

TABLE = re.compile(r"mimic-cxr-.*-(chexpert|negbio|metadata|split)\.csv(\.gz)?", re.IGNORECASE)
SUBJECT, STUDY, IMAGE = "subject_id", "study_id", "dicom_id"
VIEW = "ViewPosition"
VIEWS = {"AP": "frontal", "PA": "frontal", "LATERAL": "lateral", "LL": "lateral"}
ASIDES = (VIEW, "PatientOrientationCodeSequence_CodeMeaning")
"""The second says whether the patient stood or lay, which goes with how ill they were."""
IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")
ROWS_PER_PIECE = 1024
NO_STUDY = "no labels of its study"


def open_mimic(config: ImportConfig) -> Source:
    """Every row of the table of metadata, with its study's labels and its place in the official split.

    Views that were not asked for (`config.radiographs.views`) are left out; so are those whose position nobody noted.
    Classes are the 13 observations without "No Finding", which is the absence of the others. Whether the files are
    there shows when they are read: the fingerprint is of the tables alone.

    Raises:
        UserError: no such folder, no table of labels or metadata in it, or one that lacks columns.
    """
    root = config.images
    tables = _tables(root) if root is not None else {}
    labels_file = tables.get("chexpert") or tables.get("negbio")
    if root is None or labels_file is None or "metadata" not in tables:
        raise UserError(
            f"no mimic-cxr-...-chexpert.csv.gz (or -negbio) beside mimic-cxr-...-metadata.csv.gz in {root}: "
            "expected the folder of MIMIC-CXR-JPG; check --images"
        )
    group = (config.columns.group,) if config.columns.group else ()
    studies = _read(labels_file, SUBJECT, STUDY, others=OBSERVATIONS)
    labels = observations(studies.names, config.radiographs.uncertain, labels_file)
    if not len(studies.number):
        raise UserError(f"no row of {labels_file} has the right number of fields: download it again")
    images = _read(tables["metadata"], IMAGE, SUBJECT, STUDY, VIEW, *group, others=ASIDES)
    splits = _read(tables["split"], IMAGE, "split") if "split" in tables else None
    join = _join(images, studies, splits)

    def records() -> Iterator[Record]:
        yield from _records(root, images, studies, join, labels, config)
        yield from broken_records(images)

    files = tuple(rows.path for rows in (studies, images, splits) if rows is not None)
    return Source(
        kind="mimic",
        task="multilabel",
        classes=OBSERVATIONS,
        num_records=images.num_rows,
        records=records,
        fingerprint=fingerprint(files),
        files=files,
        notes=_notes(tables, images, studies, splits, config),
    )


@dataclass(frozen=True)
class _Join:
    """Of each image.

    study: the row of its study's labels, -1 for none; ambiguous: whether that study has several.
    split: what the table of splits says, null where it has no row; None without that table.
    first: the first row of the same dicom_id.
    """

    study: NDArray[np.int64]
    ambiguous: NDArray[np.bool_]
    split: pa.ChunkedArray | None
    first: NDArray[np.int64]


def _join(images: Rows, studies: Rows, splits: Rows | None) -> _Join:
    keys = _study_keys(studies)
    study = _index(_study_keys(images), keys)
    repeated = np.bincount(first_rows(keys), minlength=max(len(keys), 1)) > 1
    names = None
    if splits is not None:
        at = _index(images.data[IMAGE], splits.data[IMAGE])
        names = splits.data["split"].take(pa.array(at, mask=at < 0))
    return _Join(study, (study >= 0) & repeated[study], names, first_rows(images.data[IMAGE]))


def _study_keys(rows: Rows) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(rows.data[SUBJECT], rows.data[STUDY], "/")


def _index(values: pa.ChunkedArray, among: pa.ChunkedArray) -> NDArray[np.int64]:
    """Of the first that is equal; -1 for none."""
    found = pc.index_in(values, value_set=among.combine_chunks())
    return pc.fill_null(found, -1).to_numpy().astype(np.int64)


# ---------------------------------------------------------------------------------------------------------------------
# Records


def _records(
    root: Path, images: Rows, studies: Rows, join: _Join, labels: Findings, config: ImportConfig
) -> Iterator[Record]:
    read = functools.lru_cache(REMEMBERED)(labels.read)
    group, asides = config.columns.group, [name for name in ASIDES if name in images.data.column_names]
    found = studies.data.select(list(OBSERVATIONS))
    start = 0
    for piece in pieces(images.data, ROWS_PER_PIECE):
        at = join.study[start : start + len(piece)]
        values = zip(*(column.to_pylist() for column in found.take(np.maximum(at, 0)).columns), strict=True)
        splits = join.split.slice(start, len(piece)).to_pylist() if join.split is not None else [None] * len(piece)
        for i, (row, observed, split) in enumerate(zip(piece.to_pylist(), values, splits, strict=True), start):
            names, unread = read(observed) if join.study[i] >= 0 else (None, NO_STUDY)
            path, problem = _path(row)
            yield Record(
                name=path,
                image=root / path,
                image_id=row[IMAGE] or f"{images.path.name}:{images.number[i]}",
                labels=names,
                patient_id=row[SUBJECT] or None,
                split=SPLIT_NAMES.get((split or "").lower()),
                problem=problem or _problem(images, join, i, split) or unread,
                left_out=not_asked_for(VIEWS.get(row[VIEW].upper()), config.radiographs.views),
                group=f"{group}={row[group]}" if group and row[group] not in MISSING else None,
                asides={name: row[name] for name in asides if row[name] not in MISSING},
            )
        start += len(piece)


def _path(row: dict[str, str]) -> tuple[str, str | None]:
    """(path below the dataset's folder, None or why there can't be one)."""
    subject, study, image = row[SUBJECT], row[STUDY], row[IMAGE]
    problem = (
        None
        if all(map(IDENTIFIER.fullmatch, (subject, study, image)))
        else "no proper dicom_id, study_id or subject_id"
    )
    path = f"files/p{subject[:2]}/p{subject}/s{study}/{image}.jpg"
    return path.replace("\0", "?"), problem


def _problem(images: Rows, join: _Join, i: int, split: str | None) -> str | None:
    if join.first[i] != i:
        return f"listed twice, first in row {images.number[join.first[i]]}"
    if join.split is not None and split is None:
        return "no row in the table of splits"
    if join.split is not None and (split or "").lower() not in SPLIT_NAMES:
        return f"unknown split {split!r}"
    return "several rows of labels for its study" if join.ambiguous[i] else None


def _notes(
    tables: dict[str, Path], images: Rows, studies: Rows, splits: Rows | None, config: ImportConfig
) -> list[str]:
    kind = "chexpert" if "chexpert" in tables else "negbio"
    notes = [note for rows in (studies, images, splits) if rows is not None for note in rows.notes]
    notes += [
        "MIMIC-CXR-JPG is de-identified, and under a data use agreement: neither its images nor the files of a dataset "
        "made of them may be passed on.",
        f"Labels are those that the {kind} program mined from the reports, one set for each study.",
        uncertain_note([studies.data], config.radiographs.uncertain, "studies"),
        '"No Finding" is no class: it is the absence of the others.',
    ]
    if config.radiographs.views != "all":
        notes.append(f"Only {config.radiographs.views} views are taken (--radiographs.views), by ViewPosition.")
    if splits is None:
        notes.append("There is no mimic-cxr-...-split.csv.gz: a split is made, by patient.")
    for rows in (studies, splits):
        if rows is not None and rows.broken:
            notes.append(f"{len(rows.broken)} rows of {rows.path.name} have too few or too many fields: ignored.")
    return notes


# ---------------------------------------------------------------------------------------------------------------------
# Where it is


def _tables(root: Path) -> dict[str, Path]:
    """The tables by kind; of two versions the newer."""
    try:
        with os.scandir(root) as entries:
            names = sorted(entry.name for entry in entries if TABLE.fullmatch(entry.name) and is_file(entry))
    except OSError:
        return {}
    return {match[1].lower(): root / name for name in names if (match := TABLE.fullmatch(name))}


def _read(file: Path, *needed: str, others: Sequence[str] = ()) -> Rows:
    """Rows with the columns that are needed, and those of the others that are there.

    Raises:
        UserError: a column is missing.
    """
    rows = read_table(file, {*needed, *others})
    for name in needed:
        if name not in rows.names:
            raise UserError(
                f"{file} has no column {name!r} (it has {listed(rows.names)}): download it again, or correct the name"
            )
    return rows


def _recognises(path: Path) -> bool:
    found = _tables(path)
    return "metadata" in found and ("chexpert" in found or "negbio" in found)


FORMAT = Format("mimic", "MIMIC-CXR-JPG's folder, with its -metadata and -chexpert tables", _recognises, open_mimic)
