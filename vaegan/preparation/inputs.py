"""What a dataset was made from, as hashes: to say so, and to see whether it is still there."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from cluster.storage import file_sha256
from vaegan.importers import Source
from vaegan.preparation.decoding import Decoding, unfit, why_left_out
from vaegan.preparation.spool import Spool, columns_of

UNREAD = "unread"


def inputs_sha256(source: Source, lines: Iterable[str], *, named: bool) -> dict[str, str]:
    """Name to sha256 of all that was read.

    Args:
        named: whether files may be called by their names; by number where these could tell who a patient is.
        lines: one for each record that has a file of its own, in order: its name where that isn't hidden, and the
            file's sha256.
    """
    inputs = dict(source.inputs)
    for number, file in enumerate(source.files):
        inputs[file.name if named else f"file {number}"] = file_sha256(file)
    digest, some = hashlib.sha256(), False
    for line in lines:
        digest.update(line.encode(errors="surrogateescape"))
        some = True
    return inputs | ({"images": digest.hexdigest()} if some else {})


def lines_again(source: Source, how: Decoding, *, named: bool) -> Iterator[str]:
    """The lines of `inputs_sha256` for files that may have moved, or been touched: all are read for it."""
    for record in source.records():
        if isinstance(record.image, Path):
            skipped = record.problem or why_left_out(record, how)
            yield _line(record.name if named else "", UNREAD if skipped else _sha256_or_reason(record.image))


def _sha256_or_reason(path: Path) -> str:
    try:
        return UNREAD if unfit(path) else file_sha256(path)
    except OSError:
        return UNREAD


def lines_of_parts(spool: Spool, *, named: bool) -> Iterator[str]:
    """The lines of `inputs_sha256` as the parts have them."""
    wanted = ["ordinal", "name", "file_sha256"]
    for number in range(spool.num_parts):
        found = [
            row for table in (spool.part_table(number, wanted), spool.rest(number)) for row in columns_of(table, wanted)
        ]
        for _, name, sha256 in sorted(found, key=lambda row: row[0]):
            if sha256 is not None:
                yield _line(name if named else "", sha256.hex() or UNREAD)


def _line(name: str, sha256: str) -> str:
    return f"{name} {sha256}\n"
