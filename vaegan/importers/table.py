"""A table of image files and their labels: CSV, TSV or Parquet with a column of paths."""

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cluster.errors import UserError
from vaegan.importers.base import ColumnsConfig, Format, ImportConfig, Record, Source, fingerprint
from vaegan.importers.columns import Reader, find_column, find_columns, survey
from vaegan.importers.folder import SUFFIXES, is_file, patient, patient_pattern
from vaegan.importers.lookup import ImageFiles
from vaegan.importers.tabular import Rows, column_names, first_rows, is_table, listed, pieces, read_table

DICOM_SUFFIXES = (".dcm", ".dicom")
ROWS_PER_PIECE = 1024
MAX_LOOKED_AT = 20  # tables in a folder


def open_table(config: ImportConfig) -> Source:
    """All rows of the table `config.images`, or of the only one in that folder. See `config.columns` for its columns.

    Paths begin at the table's folder or are absolute; a backslash is as good as a slash, an image's suffix may be left
    away, and a bare name is found in any folder below. image_id is the column of that name, or the path.

    Raises:
        UserError: no table, several, one that can't be read, or missing or contradictory columns.
    """
    file = _table_file(config)
    rows = read_table(file)
    columns = find_columns(rows.data.column_names, config.columns, "path", file)
    reader = survey([rows.data], rows.names, columns, config.columns, file, keep_unlabelled=config.keep_unlabelled)
    images = _find_images(rows, columns.image)
    if columns.patient_id is None:
        pattern, note = patient_pattern(config.patient_regex, images.paths.to_pylist())
    else:
        pattern, note = (
            None,
            "--patient-regex was not used: there is a column of patients." if config.patient_regex else "",
        )

    def records() -> Iterator[Record]:
        yield from _records(rows, images, reader, pattern)
        yield from broken_records(rows)

    dicom = any(path.lower().endswith(DICOM_SUFFIXES) for path in images.paths.to_pylist())
    return Source(
        kind="table",
        task=reader.labels.task,
        classes=reader.labels.classes,
        num_records=rows.num_rows,
        records=records,
        fingerprint=fingerprint(itertools.chain([file], images.found())),
        files=(file,),
        notes=[*rows.notes, *reader.notes, *([note] if note else [])],
        identifying=dicom,
        dicom=dicom,
    )


def broken_records(rows: Rows) -> Iterator[Record]:
    """One for each row that has too few or too many fields."""
    for number, reason in rows.broken:
        name = f"{rows.path.name}:{number}"
        yield Record(name, b"", name, None, problem=reason)


@dataclass(frozen=True)
class _Images:
    """Of each row: the file's path, below `root` or absolute, what is wrong with it (null: nothing), and the first row
    that names the same file."""

    root: Path
    paths: pa.Array
    problems: pa.Array
    first: NDArray[np.int64]

    def found(self) -> Iterator[Path]:
        """The files, one after the other."""
        for path, problem in zip(self.paths, self.problems, strict=True):
            if not problem.is_valid:
                yield self.root / path.as_py()


def _find_images(rows: Rows, column: str) -> _Images:
    root = rows.path.parent
    files = ImageFiles(root, [*sorted(SUFFIXES), *DICOM_SUFFIXES])
    paths, problems = [pa.array([], pa.string())], [pa.array([], pa.string())]
    for piece in pieces(rows.data, ROWS_PER_PIECE):
        found = [files.find(given) for given in piece[column].to_pylist()]
        paths.append(pa.array([path for path, _ in found], pa.string()))
        problems.append(pa.array([problem for _, problem in found], pa.string()))
    all_paths = pa.concat_arrays(paths)
    return _Images(root, all_paths, pa.concat_arrays(problems), first_rows(all_paths))


def _records(rows: Rows, images: _Images, reader: Reader, pattern: re.Pattern[str] | None) -> Iterator[Record]:
    start = 0
    for piece in pieces(rows.data, ROWS_PER_PIECE):
        paths, problems = (array.slice(start, len(piece)).to_pylist() for array in (images.paths, images.problems))
        for i, (row, path, problem) in enumerate(zip(reader.rows(piece), paths, problems, strict=True), start):
            if problem is None and images.first[i] != i:
                problem = f"listed twice, first in row {rows.number[images.first[i]]}"
            yield Record(
                name=path or f"{rows.path.name}:{rows.number[i]}",
                image=images.root / path,
                image_id=row.image_id or path or f"{rows.path.name}:{rows.number[i]}",
                labels=row.labels,
                patient_id=row.patient_id or patient(pattern, path),
                split=row.split,
                problem=problem or row.problem,
                group=row.group,
                asides=row.asides,
            )
        start += len(piece)


# ---------------------------------------------------------------------------------------------------------------------
# Which file


def _table_file(config: ImportConfig) -> Path:
    path = config.images
    if path is None or not path.exists():
        raise UserError(f"no table {path}: expected a CSV or Parquet file, or a folder with one; check --images")
    if not path.is_dir():
        return path
    tables = _tables_in(path)
    fitting = [table for table in tables if _fits(table, config.columns)]
    if len(fitting) == 1 or (not fitting and len(tables) == 1):
        return (fitting or tables)[0]
    if not tables:
        raise UserError(f"no table in {path}: expected one CSV or Parquet file with a column of paths; check --images")
    found = listed([table.name for table in fitting or tables])
    which = "several tables" if fitting else "several tables, none of which has a column of paths and one of labels,"
    raise UserError(f"{which} in {path} ({found}): expected one; name the file with --images")


def _tables_in(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if not e.name.startswith(".") and is_table(Path(e.name)) and is_file(e)]
    return [folder / name for name in sorted(names)]


def _fits(table: Path, config: ColumnsConfig) -> bool:
    """Whether the header names a column of paths and one of labels."""
    try:
        names = column_names(table)
    except UserError:
        return False
    has_labels = set(config.findings) <= set(names) if config.findings else find_column(names, config, "label")
    return bool(has_labels) and find_column(names, config, "path") is not None


def _recognises(path: Path) -> bool:
    if not path.is_dir():
        # whatever is in a CSV file, no other format takes it, and `open_table` says what it lacks
        return is_table(path) and (path.suffix.lower() != ".parquet" or _fits(path, ColumnsConfig()))
    try:
        tables = _tables_in(path)
    except OSError:
        return False
    return len(tables) <= MAX_LOOKED_AT and sum(_fits(table, ColumnsConfig()) for table in tables) == 1


FORMAT = Format(
    "table",
    "a CSV, TSV or Parquet table with a column of image paths and one of labels, or a folder with one such table",
    _recognises,
    open_table,
)
