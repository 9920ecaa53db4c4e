"""Decoded images on disk, part by part, until it is decided where each belongs: what makes a killed run resume.

A part is a fixed number of a source's records, in their order. Its files are written by whoever decodes it, under their
final names only when whole.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.errors import UserError
from cluster.storage import atomic_file, read_json, write_json
from vaegan.duplicates import THUMBNAIL
from vaegan.importers.base import Record
from vaegan.preparation.decoding import Decoding, Row, decode_record
from vaegan.shards import SPLITS

PART_RECORDS, PART_BYTES = 256, 32 * 2**20
"""Of a part, at most: what is lost when a run is killed, and what a worker holds in memory."""
STAMP = "stamp.json"
NO_SPLIT = -1
PIXEL_HASH_BYTES = 32

_REST = pa.schema(
    [
        ("ordinal", pa.int32()),
        ("name", pa.string()),
        ("problem", pa.string()),
        ("left_out", pa.string()),
        ("file_sha256", pa.binary()),
        ("source", pa.string()),
    ]
)


def records_per_part(size: int, channels: int) -> int:
    """How many records make a part."""
    return max(16, min(PART_RECORDS, PART_BYTES // (size * size * channels)))


def accepted_schema(how: Decoding) -> pa.Schema:
    """Columns of the images that can be used."""
    return pa.schema(
        [
            ("ordinal", pa.int32()),
            ("name", pa.string()),
            ("image_id", pa.string()),
            ("patient_id", pa.string()),
            ("group", pa.string()),
            ("labels", pa.binary(len(how.classes))),
            ("split", pa.int8()),
            ("file_sha256", pa.binary()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("colour", pa.bool_()),
            ("pixel_hash", pa.binary(PIXEL_HASH_BYTES)),
            ("perceptual_hash", pa.uint64()),
            ("asides", pa.string()),
            ("model", pa.string()),
            ("seed", pa.int64()),
            ("index", pa.int64()),
            ("synthetic", pa.bool_()),
            ("labelled", pa.bool_()),
            ("source", pa.string()),
            ("source_patient", pa.string()),
            ("thumbnail", pa.binary(THUMBNAIL * THUMBNAIL)),
            ("image", pa.binary(how.size * how.size * how.channels)),
        ]
    )


def decode_part(records: Sequence[Record], how: Decoding, part: Path, map_: Callable[..., Any] = map) -> int:
    """Decode records and write them as the part `part`; returns how many there are.

    Args:
        map_: what applies a function to the records: a pool of threads' where processes aren't worth their start.
    """
    accepted: list[Row] = []
    ordinals: list[int] = []
    rest: list[dict[str, Any]] = []
    for ordinal, row in enumerate(map_(lambda record: decode_record(record, how), records)):
        if row.problem and how.strict:
            raise UserError(reject_sentence(records[ordinal].name, row.problem))
        if row.problem or row.left_out:
            rest.append({name: getattr(row, name) for name in _REST.names if name != "ordinal"} | {"ordinal": ordinal})
        else:
            accepted.append(row)
            ordinals.append(ordinal)
    _write(pa.Table.from_pylist(rest, schema=_REST), part.with_suffix(".rest"))
    _write(_accepted_table(accepted, ordinals, how), part)  # last: a part that is there is whole
    return len(records)


def reject_sentence(name: str, problem: str) -> str:
    """What stops a strict run."""
    return f"{name}: {problem}; mend or remove it, or leave --strict away to skip it"


def _accepted_table(rows: Sequence[Row], ordinals: Sequence[int], how: Decoding) -> pa.Table:
    wanted = accepted_schema(how)
    columns: dict[str, Any] = {"ordinal": ordinals}
    for name in wanted.names:
        if name not in ("ordinal", "labels", "split", "thumbnail", "image"):
            columns[name] = [getattr(row, name) for row in rows]
    columns["labels"] = [row.labels.tobytes() for row in rows]
    columns["split"] = [SPLITS.index(row.split) if row.split else NO_SPLIT for row in rows]
    columns["thumbnail"] = [row.thumbnail.tobytes() for row in rows if row.thumbnail is not None]
    columns["image"] = [row.pixels.tobytes() for row in rows if row.pixels is not None]
    return pa.table(columns, schema=wanted)


def _write(table: pa.Table, path: Path) -> None:
    with atomic_file(path) as temporary, pa.ipc.new_file(str(temporary), table.schema) as writer:
        writer.write_table(table)


def _read(path: Path) -> pa.Table:
    """Of the file's bytes only those are read that are looked at."""
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all()


class Spool:
    """The parts in a folder, for one source and one set of settings; parts of another are thrown away.

    Args:
        stamp: what decides the parts' content, as JSON-ready values.
    """

    def __init__(self, folder: Path, stamp: Mapping[str, Any], how: Decoding) -> None:
        self.folder, self.how = folder, how
        self.stamp = json.loads(json.dumps(stamp))
        self.num_parts = 0

    def open(self) -> None:
        """Keep what fits the stamp, clear what doesn't."""
        fits = (self.folder / STAMP).exists() and read_json(self.folder / STAMP) == self.stamp
        if not fits:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True, mode=0o700)  # it may hold names, where a linkage was asked for
            write_json(self.folder / STAMP, self.stamp)

    def remove(self) -> None:
        """Throw all of it away."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def part(self, number: int) -> Path:
        """Where a part is, or will be."""
        return self.folder / f"part-{number:06d}.arrow"

    def is_done(self, number: int) -> bool:
        """Whether a part is there and whole."""
        return self.part(number).exists()

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Columns of the images that can be used, part by part; they read the disk as they are looked at."""
        for number in range(self.num_parts):
            yield self.part_table(number, columns)

    def part_table(self, number: int, columns: Sequence[str]) -> pa.Table:
        """Columns of one part's images that can be used."""
        return _read(self.part(number)).select(columns)

    def accepted(self, columns: Sequence[str]) -> pa.Table:
        """Columns of all images that can be used, in memory."""
        # Arrow's filter copies what it takes, which a slice or a concatenation of mapped files would not
        return pa.concat_tables([table.take(np.arange(len(table))) for table in self.tables(columns)])

    def rest(self, number: int) -> pa.Table:
        """The other records of a part: why not, and the hash of their files."""
        return _read(self.part(number).with_suffix(".rest"))

    def thumbnails(self) -> np.ndarray:
        """Of all images that can be used, (N, 32, 32): a file that looks like an array."""
        path = self.folder / "thumbnails"
        with path.open("wb") as file:
            for table in self.tables(["thumbnail"]):
                for chunk in table.column(0).chunks:
                    file.write(bytes_of(chunk))
        count = path.stat().st_size // THUMBNAIL**2
        if not count:
            return np.empty((0, THUMBNAIL, THUMBNAIL), dtype=np.uint8)
        return np.memmap(path, dtype=np.uint8, mode="r", shape=(count, THUMBNAIL, THUMBNAIL))

    def pixels(self) -> Iterator[np.ndarray]:
        """Of all images that can be used, part by part, uint8 (n, H, W, C), read from disk as they are looked at."""
        for table in self.tables(["image"]):
            yield self.pixels_of(table)

    def pixels_of(self, table: pa.Table) -> np.ndarray:
        """The column `image` of rows of one part: uint8 (n, H, W, C)."""
        shape = (-1, self.how.size, self.how.size, self.how.channels)
        chunks = [np.frombuffer(bytes_of(chunk), dtype=np.uint8) for chunk in table.column("image").chunks]
        return (chunks[0] if len(chunks) == 1 else np.concatenate([np.empty(0, np.uint8), *chunks])).reshape(shape)


def bytes_of(chunk: pa.Array) -> memoryview:
    """What a fixed-size binary array without nulls holds, uncopied."""
    if not len(chunk):
        return memoryview(b"")
    width = chunk.type.byte_width
    return memoryview(chunk.buffers()[1])[chunk.offset * width : (chunk.offset + len(chunk)) * width]


def columns_of(table: pa.Table, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Rows of some columns, as Python's values."""
    return zip(*(table.column(name).to_pylist() for name in columns), strict=True)
