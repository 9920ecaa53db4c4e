"""Synthetic images as the bytes of an answer, in the format that a client accepts.

The same images give the same bytes, today and tomorrow: archives carry no clock time. Large answers are written a
portion at a time, and nothing that was sent is kept.
"""

from collections.abc import Callable

from serve.formats.answer import Answer, Writer
from serve.formats.archives import NpzWriter, PngWriter, ZipWriter
from serve.formats.negotiation import ARROW, FORMATS, NPZ, PARQUET, PNG, ZIP, Format, negotiate
from serve.formats.png import png
from serve.formats.tables import ArrowWriter, ParquetWriter

__all__ = [
    "Answer", "Writer", "writer", "png",
    "Format", "FORMATS", "PNG", "ZIP", "NPZ", "PARQUET", "ARROW", "negotiate",
]  # fmt: skip

_WRITERS: dict[Format, Callable[[Answer], Writer]] = {
    PNG: PngWriter,
    ZIP: ZipWriter,
    NPZ: NpzWriter,
    PARQUET: ParquetWriter,
    ARROW: ArrowWriter,
}


def writer(format: Format, answer: Answer) -> Writer:
    """What turns the images of an answer into bytes of a format."""
    return _WRITERS[format](answer)
