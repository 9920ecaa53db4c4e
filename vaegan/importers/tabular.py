"""Tables on disk: CSV and TSV, plain or gzip, and Parquet, as Arrow columns of strings or lists of strings.

Everything is a string, since a reader that guesses types turns patient 00001280 into 1280. A blank field of a CSV file
is "", a missing value of a Parquet file None.
"""

import codecs
import csv
import gzip
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cluster.errors import UserError

SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet")
DELIMITERS = (",", ";", "\t")
FIRST_ROW = 2
"""Number of the row below the header, as spreadsheets count."""
HEAD_BYTES = 1 << 16
"""How much of a CSV file is read to see its header; no header known is a tenth as long."""
MAX_LISTED = 12
MAX_NAME = 40
MISSING = (None, "")


@dataclass(frozen=True)
class Rows:
    """The rows of one table, in memory.

    names: of all columns of the file.
    data: those that were read: strings, or lists of strings where the file has lists; never bytes or structs.
    number: of each row of `data`, from 2 on, as spreadsheets count; int64 (N,).
    broken: (number, what is wrong) of rows with too few or too many fields, which `data` lacks.
    notes: how the file was read, where that may surprise.
    """

    path: Path
    names: tuple[str, ...]
    data: pa.Table
    number: NDArray[np.int64]
    broken: tuple[tuple[int, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def num_rows(self) -> int:
        """Broken ones included."""
        return len(self.number) + len(self.broken)


def is_table(path: Path) -> bool:
    """Whether the file's name ends like a table's."""
    return path.name.lower().endswith(SUFFIXES)


def column_names(path: Path) -> list[str]:
    """The header of a CSV file, or the columns of a Parquet file that are no bytes or structs: a look at its head.

    What is read of the head alone may spell a name otherwise than `Rows.names`, which knows the whole file's encoding.

    Raises:
        UserError: it can't be read, or isn't a table.
    """
    if path.suffix.lower() == ".parquet":
        return [field.name for field in parquet_schema(path) if is_text(field.type)]
    return _header(_text(_head(path), path, whole=False), path)[0]


def read_table(path: Path, columns: Collection[str] | None = None) -> Rows:
    """All rows. Lists of floats are not read: they are embeddings.

    Args:
        columns: read only these, of those that are there.

    Raises:
        UserError: it can't be read, isn't a table, names a column twice, or has no rows.
    """
    rows = _read_parquet(path, columns) if path.suffix.lower() == ".parquet" else _read_csv(path, columns)
    if not rows.num_rows:
        raise UserError(f"{path} has no rows below its header: expected one for each image; check the file")
    return rows


def listed(names: Sequence[str]) -> str:
    """Names of columns for a message: not all of a thousand, and none a page long."""
    shown = [name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}..." for name in names[:MAX_LISTED]]
    more = f", and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(map(_printable, shown)) + more


def _printable(text: str) -> str:
    return text if text.isprintable() else repr(text)


def pieces(table: pa.Table, size: int) -> Iterator[pa.Table]:
    """Cuts of `size` rows, the last may be shorter; no copies."""
    for start in range(0, table.num_rows, size):
        yield table.slice(start, size)


def first_rows(column: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
    """For each row the first row of the same value: its own index where it is the first, or has no value."""
    codes = pc.index_in(column, value_set=pc.unique(column), skip_nulls=True).to_numpy(zero_copy_only=False)
    codes = np.nan_to_num(codes, nan=-1).astype(np.int64)
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    return np.where(codes < 0, np.arange(len(codes)), first[inverse])


def as_strings(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Numbers, times and text as strings, lists as lists of strings; missing where `is_text` would not take them.

    Whole floats lose their ".0", since that is how integers look once one is missing; NaN is missing.
    """
    kind = column.type
    if not is_text(kind):
        return pa.chunked_array([pa.nulls(len(column), pa.string())])
    try:
        if pa.types.is_dictionary(kind):
            return as_strings(column.cast(kind.value_type))
        if is_list(kind):
            return _checked(_list_of_strings(column))
        if pa.types.is_floating(kind):
            column = _whole(pc.if_else(pc.is_nan(column), pa.scalar(None, kind), column))
        return _checked(column.cast(pa.string()))
    except pa.ArrowException:  # a value that has no string, as a date in the year 300,000
        return pa.chunked_array([pa.nulls(len(column), pa.list_(pa.string()) if is_list(kind) else pa.string())])


def is_list(kind: pa.DataType) -> bool:
    """Whether values are lists, of any kind."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_text(kind: pa.DataType) -> bool:
    """Whether values of this type have a form as strings: bytes and structs have none."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    if is_list(kind):
        return is_text(kind.value_type) and not is_list(kind.value_type)
    is_of = pa.types
    text = is_of.is_string(kind) or is_of.is_large_string(kind) or is_of.is_boolean(kind) or is_of.is_null(kind)
    number = is_of.is_integer(kind) or is_of.is_float32(kind) or is_of.is_float64(kind) or is_of.is_decimal(kind)
    return text or number or is_of.is_date(kind) or is_of.is_timestamp(kind) or is_of.is_time(kind)


def _list_of_strings(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_boolean(column.type.value_type):
        column = column.cast(pa.list_(pa.int8()))
    return column.cast(pa.list_(pa.string()))


def _whole(column: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid:  # fractions
        return column


def _checked(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text that isn't UTF-8 with marks in place of the odd bytes. A file may claim of any bytes that they are text."""
    try:
        column.validate(full=True)
        return column
    except pa.ArrowInvalid:
        if is_list(column.type):
            return pa.chunked_array([pa.nulls(len(column), column.type)])
        raw = column.cast(pa.binary()).to_pylist()
        return pa.chunked_array([pa.array([v if v is None else v.decode(errors="replace") for v in raw], pa.string())])


# ---------------------------------------------------------------------------------------------------------------------
# Parquet


def parquet_schema(path: Path) -> pa.Schema:
    """Raises:
    UserError: it can't be read, isn't Parquet, or names a column twice.
    """
    _check_regular(path)
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} isn't a Parquet file ({short_reason(error)}); remove or replace it") from None
    _check_unique(schema.names, path)
    return schema


def _read_parquet(path: Path, columns: Collection[str] | None) -> Rows:
    schema = parquet_schema(path)
    texts = [field.name for field in schema if is_text(field.type) and not _is_embedding(field.type)]
    wanted = [name for name in texts if columns is None or name in columns]
    try:
        table = pq.ParquetFile(path).read(columns=wanted)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({short_reason(error)}); replace it") from None
    data = pa.table({name: as_strings(table.column(name)) for name in wanted})
    return Rows(path, tuple(schema.names), data, np.arange(FIRST_ROW, FIRST_ROW + table.num_rows))


def _is_embedding(kind: pa.DataType) -> bool:
    return is_list(kind) and pa.types.is_floating(kind.value_type)


def _check_unique(names: Sequence[str], path: Path) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(
            f"column {listed(repeated[:1])!r} stands more than once in {path}: expected each name once; rename "
            "the others"
        )


def short_reason(error: Exception) -> str:
    """What Arrow or the system says, on one line."""
    return " ".join(str(error).split())[:120]


# ---------------------------------------------------------------------------------------------------------------------
# CSV


def _read_csv(path: Path, columns: Collection[str] | None) -> Rows:
    raw = _content(path)
    text = _text(raw, path)
    names, delimiter, start = _header(text, path)
    broken: list[tuple[int, str]] = []

    def set_aside(row: pacsv.InvalidRow) -> str:
        broken.append((row.number, f"{row.actual_columns} fields in the row, expected {row.expected_columns}"))
        return "skip"

    body = pa.py_buffer(text).slice(start)
    # one column at least, or the rows could not be counted
    wanted = [name for name in names if columns is None or name in columns] or names[:1]
    data = _parsed(body, names, wanted, delimiter, set_aside, path)
    good = np.setdiff1d(np.arange(1, data.num_rows + len(broken) + 1), [number for number, _ in broken])
    data = pa.table({name: pc.utf8_trim_whitespace(data.column(name)) for name in wanted})
    return Rows(
        path,
        tuple(names),
        data,
        (good + FIRST_ROW - 1).astype(np.int64),
        tuple((number + FIRST_ROW - 1, reason) for number, reason in broken),
        tuple(_notes(raw, text, path)),
    )


def _notes(raw: bytes, text: bytes, path: Path) -> list[str]:
    notes = []
    if raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        notes.append(f"{path.name} was read as UTF-16.")
    elif len(text) > len(raw):  # each byte above 127 has become two
        notes.append(f"{path.name} isn't UTF-8: it was read as Latin-1.")
    if text.count(b'"') % 2:
        notes.append(
            f"{path.name} has an odd number of quotation marks: one isn't closed, and the rows after it may be lost in "
            "one field; mend the file."
        )
    return notes


def _parsed(
    body: pa.Buffer, names: list[str], wanted: list[str], delimiter: str, set_aside: object, path: Path
) -> pa.Table:
    if not body.size:
        return pa.table({name: pa.array([], pa.string()) for name in wanted})
    try:
        return pacsv.read_csv(
            body,
            # one block: rows with line breaks in them can't be cut, and each broken row is given its number
            pacsv.ReadOptions(use_threads=False, column_names=names, block_size=min(body.size, 2**30)),
            pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=set_aside),
            pacsv.ConvertOptions(
                column_types={name: pa.string() for name in names}, strings_can_be_null=False, include_columns=wanted
            ),
        )
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{path} can't be read as a table ({short_reason(error)}): expected CSV; mend the file"
        ) from None


def _check_regular(path: Path) -> None:
    if not path.is_file():  # reading a pipe or a device may never end
        raise UserError(f"{path} is no regular file (or none at all): expected a table; check the path")


def _content(path: Path) -> bytes:
    _check_regular(path)
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix.lower() == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from None


def _head(path: Path) -> bytes:
    _check_regular(path)
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as file:
            return file.read(HEAD_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} can't be read ({getattr(error, 'strerror', None) or short_reason(error)}); check the file"
    )


def _text(raw: bytes, path: Path, *, whole: bool = True) -> bytes:
    """The file as UTF-8, with lines that end in a line feed."""
    if raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        text = raw.decode("utf-16", errors="replace").encode()
    elif b"\0" in raw[:HEAD_BYTES]:
        raise UserError(f"{path} holds zero bytes, so it is no text: expected CSV with a header; check the file")
    else:
        text = raw.removeprefix(codecs.BOM_UTF8)
        try:  # the head of a file may end within a character, which "final" would refuse
            codecs.getincrementaldecoder("utf-8")().decode(text, final=whole)
        except UnicodeDecodeError:
            text = text.decode("latin-1").encode()
    if b"\r" in text and b"\n" not in text:
        text = text.replace(b"\r", b"\n")
    return text


def _header(text: bytes, path: Path) -> tuple[list[str], str, int]:
    """Column names, the delimiter that gives most of them, and where the first row begins."""
    found = [(*_first_row(text, delimiter, path), delimiter) for delimiter in DELIMITERS]
    names, start, delimiter = max(found, key=lambda each: len(each[0]))
    if not names:
        raise UserError(f"{path} is empty: expected a header and a row for each image; check the file")
    names = [name or f"column {i}" for i, name in enumerate(names, start=1)]
    _check_unique(names, path)
    return names, delimiter, start


def _first_row(text: bytes, delimiter: str, path: Path) -> tuple[list[str], int]:
    end = 0

    def lines() -> Iterator[str]:
        nonlocal end
        while end < len(text):
            begin, end = end, text.find(b"\n", end) + 1 or len(text)
            yield text[begin:end].decode(errors="replace")

    try:
        for names in csv.reader(lines(), delimiter=delimiter):
            if end > HEAD_BYTES:
                raise UserError(f"the header of {path} is longer than {HEAD_BYTES} bytes: expected names of columns")
            if any(name.strip() for name in names):
                return [name.strip() for name in names], end
    except csv.Error as error:
        raise UserError(f"the header of {path} can't be read ({error}): expected names of columns") from None
    return [], end
