"""Parquet files of image bytes and labels, such as those of the Hugging Face hub."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import UserError
from vaegan.importers.base import SPLIT_NAMES, Format, ImportConfig, Record, Source, fingerprint
from vaegan.importers.columns import Columns, Reader, find_columns, survey
from vaegan.importers.tabular import as_strings, is_list, is_text, parquet_schema, short_reason

ROWS_PER_BATCH = 256  # encoded images in memory at a time
ROWS_PER_TEXTS = 1 << 16  # rows without images
DAMAGED = (pa.ArrowException, OSError, ValueError)


def parquet_files(path: Path) -> list[Path]:
    """The Parquet files that are, or lie directly in or anywhere below, `path`, sorted; hidden ones are left out."""
    if path.is_file():
        return [path]
    found = path.rglob("*.parquet")
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(path).parts))


def open_parquet(config: ImportConfig) -> Source:
    """All rows of a Parquet file, or of every one in a folder. See `config.columns` for its columns.

    Labels may be strings (multiclass; multilabel with `config.columns.separator` anywhere), integers (multiclass; named
    by the `label_name` column if there is one), lists of strings or integers (multilabel), lists of 0 and 1 of equal
    length, two or more (multilabel, multi-hot), or columns of 0 and 1 (multilabel).

    Raises:
        UserError: no files, files that aren't Parquet, or missing or contradictory columns.
    """
    files = parquet_files(config.images) if config.images is not None and config.images.exists() else []
    if not files:
        raise UserError(f"no Parquet files in {config.images}: expected one, or a folder of them; check --images")
    schemas = {file: parquet_schema(file) for file in files}
    _check_same(schemas)
    schema = schemas[files[0]]
    columns = find_columns(schema.names, config.columns, "image", files[0])
    for file in files:
        _check_types(schemas[file], columns, file)
    reads = [
        each.name for each in schema if each.name in columns.used or (is_text(each.type) and not is_list(each.type))
    ]
    reads = [name for name in reads if name != columns.image]
    parts = (part for file in files for part in _texts(file, reads))
    reader = survey(parts, schema.names, columns, config.columns, files[0], keep_unlabelled=config.keep_unlabelled)
    splits = {} if reader.splits else _splits_by_name(files)
    stems = _stems(files, config.images)

    def records() -> Iterator[Record]:
        for file, stem in zip(files, stems, strict=True):
            for record in _records(file, stem, reader):
                yield dataclasses.replace(record, split=splits[file]) if splits else record

    return Source(
        kind="parquet",
        task=reader.labels.task,
        classes=reader.labels.classes,
        num_records=sum(sum(_group_sizes(file)) for file in files),
        records=records,
        fingerprint=fingerprint(files),
        files=tuple(files),
        notes=_notes(reader, splits, config),
    )


def _notes(reader: Reader, splits: dict[Path, str], config: ImportConfig) -> list[str]:
    notes = list(reader.notes)
    if config.patient_regex is not None:
        notes.append(
            "--patient-regex was not used: rows of Parquet have no paths; name a column with --columns.patient-id."
        )
    if splits:
        notes.append("The split is that of the files' names (train, validation, test).")
    if reader.columns.patient_id is None:
        notes.append("There is no column of patients, so each image counts as one: patients may cross the splits.")
    return notes


def _stems(files: Sequence[Path], root: Path | None) -> list[str]:
    """What rows are named after: the file's name, or its path below `root` where names repeat."""
    stems = [file.stem for file in files]
    if len(set(stems)) == len(stems) or root is None:
        return stems
    return [file.relative_to(root).with_suffix("").as_posix() for file in files]


def _splits_by_name(files: Sequence[Path]) -> dict[Path, str]:
    """Split of each file, as the hub names them (train-00000-of-00002.parquet, or a folder train/); empty unless each
    file has one and there are two."""
    found: dict[Path, str] = {}
    for file in files:
        for name in (file.stem.partition("-")[0].lower(), file.parent.name.lower()):
            if name in SPLIT_NAMES:
                found.setdefault(file, SPLIT_NAMES[name])
    return found if len(found) == len(files) and len(set(found.values())) > 1 else {}


# ---------------------------------------------------------------------------------------------------------------------
# What the files are


def _check_same(schemas: Mapping[Path, pa.Schema]) -> None:
    first, expected = next(iter(schemas.items()))
    for file, schema in schemas.items():
        if set(schema.names) != set(expected.names):
            raise UserError(f"{file} has other columns than {first}: expected the same in all files of a folder")


def _check_types(schema: pa.Schema, columns: Columns, file: Path) -> None:
    """Raises:
    UserError: no bytes where images should be, or bytes where the rest should be.
    """
    kind = schema.field(columns.image).type
    if pa.types.is_fixed_size_binary(kind) and b"augray" in (schema.metadata or {}):
        raise UserError(
            f"{file} is one file of a dataset that AugRay wrote: pass the dataset's folder ({file.parent}), which is "
            "whole only with its manifest.json"
        )
    if not (_is_bytes(kind) or _is_struct_of_bytes(kind)):
        instead = "read paths with --source table" if is_text(kind) else "name another with --columns.image"
        raise UserError(f"column {columns.image!r} of {file} holds {kind}: expected image files as bytes; {instead}")
    for name in columns.used:
        if not is_text(schema.field(name).type):
            raise UserError(
                f"column {name!r} of {file} holds {schema.field(name).type}: expected integers, strings or lists of "
                "them; name another"
            )


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or kind == pa.binary_view()


def _is_struct_of_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and any(each.name == "bytes" and _is_bytes(each.type) for each in kind)


def _group_sizes(file: Path) -> list[int]:
    """Rows of each row group."""
    metadata = pq.read_metadata(file)
    return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]


def _texts(file: Path, names: Sequence[str]) -> Iterator[pa.Table]:
    """All rows of some columns, as strings, part by part."""
    try:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=ROWS_PER_TEXTS, columns=names):
            yield _as_texts(batch, names)
    except DAMAGED as error:
        raise UserError(f"{file} is damaged ({short_reason(error)}); replace it") from None


def _as_texts(batch: pa.RecordBatch, names: Sequence[str]) -> pa.Table:
    table = pa.Table.from_batches([batch])
    return pa.table({name: as_strings(table.column(name)) for name in names})


# ---------------------------------------------------------------------------------------------------------------------
# Rows


def _records(file: Path, stem: str, reader: Reader) -> Iterator[Record]:
    """One for each row, also for those that can't be read any more."""
    row = 0
    for group, size in enumerate(_group_sizes(file)):
        problem, end = "rows that the file lacks", row + size
        try:
            for batch in pq.ParquetFile(file).iter_batches(
                ROWS_PER_BATCH,
                row_groups=[group],
                columns=[reader.columns.image, *reader.columns.used, *reader.columns.asides],
            ):
                for record in list(_batch(batch, file, stem, row, reader))[: end - row]:
                    yield record
                    row += 1
        except DAMAGED as error:
            problem = f"a damaged part of the file ({short_reason(error)})"
        for lost in range(row, end):
            yield Record(f"{file.name}:{lost}", b"", f"{stem}-{lost:06d}", None, problem=problem)
        row = end


def _batch(batch: pa.RecordBatch, file: Path, stem: str, start: int, reader: Reader) -> Iterator[Record]:
    texts = _as_texts(batch, [*reader.columns.used, *reader.columns.asides])
    images = batch.column(reader.columns.image).to_pylist()
    for number, (row, image) in enumerate(zip(reader.rows(texts), images, strict=True), start):
        data, problem = _bytes(image)
        yield Record(
            name=f"{file.name}:{number} {row.image_id}" if row.image_id else f"{file.name}:{number}",
            image=data,
            image_id=row.image_id or f"{stem}-{number:06d}",
            labels=row.labels,
            patient_id=row.patient_id,
            split=row.split,
            problem=problem or row.problem,
            group=row.group,
            asides=row.asides,
        )


def _bytes(image: bytes | dict[str, Any] | None) -> tuple[bytes, str | None]:
    """Those of the image file, and what is wrong."""
    data = image.get("bytes") if isinstance(image, dict) else image
    if data is not None:
        return data, None
    path = image.get("path") if isinstance(image, dict) else None
    return b"", "a path without bytes: expected the image itself" if path else "no image"


def _recognises(path: Path) -> bool:
    try:
        return bool(parquet_files(path)) if path.is_dir() else path.suffix.lower() == ".parquet"
    except OSError:
        return False


FORMAT = Format(
    "parquet", "Parquet with image files as bytes and labels, one file or a folder of them", _recognises, open_parquet
)
