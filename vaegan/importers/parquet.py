"""Parquet files of image bytes and labels, such as those of the Hugging Face hub."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import UserError
from cluster.storage import file_sha256
from vaegan.importers.base import SPLIT_NAMES, ImportConfig, ParquetConfig, Record, Source

ROWS_PER_BATCH = 256  # encoded images in memory at a time


def parquet_files(path: Path) -> list[Path]:
    """The Parquet files that are, or lie directly in or anywhere below, `path`, sorted; hidden ones are left out."""
    if path.is_file():
        return [path]
    found = path.rglob("*.parquet")
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(path).parts))


def open_parquet(config: ImportConfig) -> Source:
    """All rows of a Parquet file, or of every one in a folder.

    Labels may be strings (multiclass), integers (multiclass; named by the `label_name` column if there is one), lists
    of strings or integers (multilabel), or lists of 0 and 1 of equal length, two or more (multilabel, multi-hot).

    Raises:
        UserError: no files, files that aren't Parquet, or missing or contradictory columns.
    """
    files = parquet_files(config.images) if config.images is not None and config.images.exists() else []
    if not files:
        raise UserError(f"no Parquet files in {config.images}: expected one, or a folder of them; check --images")
    columns = _columns(files, config.parquet)
    labels = _label_names(files, columns)
    splits = _known_splits(files, columns)

    def records() -> Iterator[Record]:
        for file in files:
            yield from _records(file, columns, labels, splits)

    return Source(
        kind="parquet",
        task=labels.task,
        classes=labels.classes,
        num_records=sum(pq.read_metadata(file).num_rows for file in files),
        records=records,
        inputs={file.name: file_sha256(file) for file in files},
        notes=_notes(columns, splits),
    )


@dataclass(frozen=True)
class _Columns:
    """Names of the columns that exist; None for those that don't. unread: those nobody asked for."""

    image: str
    label: str
    label_name: str | None
    patient_id: str | None
    split: str | None
    image_id: str | None
    unread: tuple[str, ...]


def _columns(files: Sequence[Path], wanted: ParquetConfig) -> _Columns:
    names: list[str] = []
    for file in files:
        try:
            found = pq.read_schema(file).names
        except (pa.ArrowInvalid, OSError) as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"{file} isn't a Parquet file ({reason}); remove or replace it") from None
        names = names or found
        for name, flag in ((wanted.image, "image"), (wanted.label, "label")):
            if name not in found:
                raise UserError(
                    f"{file} has no column {name!r} (it has {', '.join(found)}): name yours with --parquet.{flag} NAME"
                )
        if set(found) != set(names):
            raise UserError(f"{file} has other columns than {files[0]}: expected the same in all files of a folder")
    either = lambda *choices: next((name for name in choices if name in names), None)  # noqa: E731
    label_name, patient_id, split = either(wanted.label_name), either(wanted.patient_id), either(wanted.split)
    image_id = either(wanted.image_id, "image_id")
    used = {wanted.image, wanted.label, label_name, patient_id, split, image_id}
    unread = tuple(name for name in names if name not in used)
    return _Columns(wanted.image, wanted.label, label_name, patient_id, split, image_id, unread)


@dataclass(frozen=True)
class _Labels:
    """How a value of the label column becomes class names."""

    task: str
    classes: tuple[str, ...]
    names: dict[Any, str]
    multi_hot: bool = False

    def __call__(self, value: Any) -> tuple[str, ...]:
        """Raises KeyError for a label that is no class, TypeError for none at all."""
        if self.multi_hot:
            return tuple(name for name, on in zip(self.classes, value, strict=True) if on)
        values = value if self.task == "multilabel" else [value]
        return tuple(self.names[v] for v in values)


def _label_names(files: Sequence[Path], columns: _Columns) -> _Labels:
    wanted = [columns.label] + ([columns.label_name] if columns.label_name else [])
    table = pa.concat_tables([pq.read_table(file, columns=wanted) for file in files])
    values = table.column(columns.label).to_pylist()
    given = [value for value in values if value is not None]
    if not given:
        raise UserError(f"column {columns.label!r} of {files[0]} is empty: expected a label in each row")
    if isinstance(given[0], list):
        return _list_labels(given)
    if not isinstance(given[0], int | str):
        raise UserError(
            f"column {columns.label!r} of {files[0]} holds {type(given[0]).__name__}: "
            "expected integers, strings or lists of them"
        )
    unique = sorted(set(given))
    names = {value: str(value) for value in unique}
    if columns.label_name:
        names |= _spelled_out(values, table.column(columns.label_name).to_pylist(), files[0])
    return _Labels("multiclass", tuple(names[value] for value in unique), names)


def _list_labels(given: list[list[Any]]) -> _Labels:
    lengths = {len(value) for value in given}
    flat = {v for value in given for v in value}
    if len(lengths) == 1 and max(lengths) >= 2 and flat <= {0, 1}:
        return _Labels("multilabel", tuple(str(i) for i in range(max(lengths))), {}, multi_hot=True)
    unique = sorted(v for v in flat if v is not None)
    return _Labels("multilabel", tuple(str(v) for v in unique), {v: str(v) for v in unique})


def _spelled_out(values: list[Any], names: list[str | None], file: Path) -> dict[Any, str]:
    pairs = sorted({(v, n) for v, n in zip(values, names, strict=True) if v is not None and n is not None})
    spelled = dict(pairs)
    if len(spelled) != len({v for v, _ in pairs}) or len(spelled) != len({n for _, n in pairs}):
        found = ", ".join(f"{v}={n}" for v, n in list(pairs)[:6])
        raise UserError(
            f"labels and label names of {file} do not match one to one ({found}): "
            "expected one name per label; correct them or pass --parquet.label-name with another column"
        )
    return spelled


def _known_splits(files: Sequence[Path], columns: _Columns) -> dict[str, str] | None:
    """The source's names of train, val and test; None where it has no split, as when every row says "all"."""
    if not columns.split:
        return None
    found = set()
    for file in files:
        found |= set(pq.read_table(file, columns=[columns.split]).column(columns.split).unique().to_pylist())
    known = {name: SPLIT_NAMES[str(name).lower()] for name in found if str(name).lower() in SPLIT_NAMES}
    return known or None


def _notes(columns: _Columns, splits: dict[str, str] | None) -> list[str]:
    notes = []
    if columns.split and not splits:
        notes.append(f"Column {columns.split!r} names no train, val or test: the split is made anew.")
    if not columns.patient_id:
        notes.append("There is no column of patients, so each image counts as one: patients may cross the splits.")
    if columns.unread:
        notes.append(f"Columns not read: {', '.join(columns.unread)}.")
    return notes


def _records(file: Path, columns: _Columns, labels: _Labels, splits: dict[str, str] | None) -> Iterator[Record]:
    wanted = [c for c in (columns.image, columns.label, columns.patient_id, columns.split, columns.image_id) if c]
    row = 0
    for batch in pq.ParquetFile(file).iter_batches(batch_size=ROWS_PER_BATCH, columns=wanted):
        for values in batch.to_pylist():
            image, split = values[columns.image], values.get(columns.split or "")
            image_id = str(values.get(columns.image_id or "") or f"{file.stem}-{row:06d}")
            patient = values.get(columns.patient_id or "")
            names, problem = _labels_or_problem(labels, values[columns.label])
            if splits and split not in splits:
                problem = problem or f"unknown split {split!r}"
            yield Record(
                name=f"{file.name}:{row} {image_id}" if columns.image_id else f"{file.name}:{row}",
                image=(image.get("bytes") if isinstance(image, dict) else image) or b"",
                image_id=image_id,
                labels=names,
                patient_id=None if patient is None else str(patient),
                split=splits.get(split) if splits else None,
                problem=problem,
            )
            row += 1


def _labels_or_problem(labels: _Labels, value: Any) -> tuple[tuple[str, ...] | None, str | None]:
    try:
        return labels(value), None
    except (KeyError, TypeError, ValueError):
        return None, "no label" if value is None else f"unknown label {value!r}"
