"""Which row of a table is whose, where tables name DICOM files by path, by file name or by what is in the headers."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cluster.errors import UserError
from vaegan.dicom import IDENTIFIERS, read_identifiers
from vaegan.importers.folder import suffix

SUFFIXES = {".dcm", ".dicom", ".dic", ".ima", ""}
"""Of DICOM files, in lower case."""
SAMPLE = 200
"""Headers that are read to see whether a table's keys are in them, before all are."""
HEADERS_AT_ONCE = 1024
THREADS = 4  # waiting for the disk is what can be shared


@dataclass(frozen=True)
class Match:
    """What of a table's rows is found for files.

    kind: of key, in words.
    row: for each file the first row that names it, -1 for none, int64 (F,).
    ambiguous: whether other files have the same name, bool (F,).
    """

    kind: str
    row: NDArray[np.int64]
    ambiguous: NDArray[np.bool_]


def comparable(keys: pa.ChunkedArray) -> pa.ChunkedArray:
    """Paths with forward slashes, without ./ or / in front; other keys as they are."""
    return pc.replace_substring_regex(pc.replace_substring(keys, "\\", "/"), r"^(\./)+|^/+", "")


def match(root: Path, files: Sequence[str], keys: pa.ChunkedArray) -> Match:
    """The kind of key that most files have.

    Paths and names come first. Headers are read where names leave files and rows alone, all of them only if a sample of
    files shows an attribute that is a key of more files than have a name there.

    Args:
        files: paths below `root`.
        keys: (N,) of the table's rows, made `comparable`; empty or null where a row names nothing.
    """
    known = pc.unique(keys)
    kinds = {kind: _strings(map(name_of, files)) for kind, name_of in NAMES.items()}
    hits = {kind: _num_in(values, known) for kind, values in kinds.items()}
    best = max(hits, key=lambda kind: hits[kind])
    if hits[best] < len(files) and _num_in(known, kinds[best]) < _num_in(known, known):
        attribute = _attribute(root, files, known, hits[best] / len(files))
        values = _attributes(root, files, attribute) if attribute else _strings([])
        if _num_in(values, known) > hits[best]:
            return Match(f"the headers' {attribute}", _rows_of(values, keys), np.zeros(len(files), bool))
    rows = _rows_of(kinds[best], keys)
    return Match(best, rows, _repeated(kinds[best]) & (rows >= 0))


def _bare(path: str) -> str:
    ending = suffix(path)
    return path[: -len(ending)] if ending and ending in SUFFIXES else path


def _name(path: str) -> str:
    return path.rpartition("/")[2]


NAMES: Mapping[str, Callable[[str], str]] = {
    "paths": str,
    "paths without suffix": _bare,
    "file names": _name,
    "file names without suffix": lambda path: _bare(_name(path)),
}
"""What a table may call a file, in the order in which ties are broken."""


def _strings(values: Iterable[str | None]) -> pa.Array:
    """Names of files may hold bytes that are no UTF-8."""
    return pa.array((v if v is None else os.fsencode(v).decode(errors="replace") for v in values), pa.string())


def _num_in(values: pa.Array, known: pa.Array) -> int:
    """How many values are known, blank ones aside."""
    found = pc.is_in(values.filter(pc.not_equal(values, "")), value_set=known, skip_nulls=True)
    return pc.sum(found).as_py() or 0


def _rows_of(values: pa.Array, keys: pa.ChunkedArray) -> NDArray[np.int64]:
    found = pc.index_in(
        pc.if_else(pc.equal(values, ""), None, values), value_set=keys.combine_chunks(), skip_nulls=True
    )
    return pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)


def _repeated(values: pa.Array) -> NDArray[np.bool_]:
    counts = pc.value_counts(values)
    several = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    return pc.is_in(values, value_set=several).to_numpy(zero_copy_only=False)


def _attribute(root: Path, files: Sequence[str], known: pa.Array, share: float) -> str | None:
    """The attribute that is a key of a larger share than this of some files."""
    some = [identifiers(root / path) for path in files[:: max(1, len(files) // SAMPLE)]]
    hits = {name: _num_in(_strings(each.get(name) for each in some), known) for name in IDENTIFIERS}
    best = max(hits, key=lambda name: hits[name])
    return best if hits[best] > share * len(some) else None


def _attributes(root: Path, files: Sequence[str], name: str) -> pa.Array:
    """An attribute of all files."""
    found = []
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(files), HEADERS_AT_ONCE):
            some = pool.map(lambda path: identifiers(root / path), files[start : start + HEADERS_AT_ONCE])
            found.append(_strings(each.get(name) for each in some))
    return pa.concat_arrays(found)


def identifiers(path: Path) -> Mapping[str, str]:
    """What `read_identifiers` finds in a file; nothing where it can't be read."""
    try:
        if not path.is_file():  # reading a pipe may never end
            return {}
        with open(path, "rb") as file:
            return read_identifiers(file)
    except (UserError, OSError):  # decoding tells what is wrong with it
        return {}
