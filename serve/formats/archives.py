"""Archives: PNG files in a ZIP, and NumPy arrays in an NPZ."""

import csv
import io
import zipfile
from dataclasses import replace
from typing import IO
from urllib.parse import quote

import numpy as np

from serve.formats.answer import Answer
from serve.formats.png import png
from serve.formats.sink import Sink
from vaegan.shards import Images

EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a ZIP entry can have


class PngWriter:
    """The file of the answer's only image."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    def prepare(self, offset: int, pixels: np.ndarray) -> bytes:
        return png(pixels[0], self.answer.address(offset))

    def add(self, prepared: bytes) -> bytes:
        return prepared

    def finish(self) -> bytes:
        return b""

    def close(self) -> None:
        pass


class _Archive:
    """A ZIP file, stored: PNG data is compressed already, and raw noise-like pixels gain little.

    Args:
        whole_entries: each entry is added at once, and its size goes before it, which readers that can't seek need;
            else sizes follow their entries, which can then be sent while they are written.
    """

    def __init__(self, *, whole_entries: bool) -> None:
        self.sink = Sink(seekable=whole_entries)
        self.zip = zipfile.ZipFile(self.sink, "w", zipfile.ZIP_STORED)

    def add(self, name: str, data: bytes) -> None:
        self.zip.writestr(zipfile.ZipInfo(name, EPOCH), data)

    def open(self, name: str) -> IO[bytes]:
        """An entry to write to until it is closed."""
        return self.zip.open(zipfile.ZipInfo(name, EPOCH), "w", force_zip64=True)

    def drain(self) -> bytes:
        return self.sink.drain()

    def close(self) -> bytes:
        self.zip.close()
        return self.sink.drain()


class ZipWriter:
    """PNG files in one archive, and images.csv, which gives the address of each."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.archive = _Archive(whole_entries=True)

    def prepare(self, offset: int, pixels: np.ndarray) -> list[tuple[str, bytes]]:
        addresses = [self.answer.address(offset + i) for i in range(len(pixels))]
        return [
            (_file_name(offset + i, address), png(image, address))
            for i, (image, address) in enumerate(zip(pixels, addresses, strict=True))
        ]

    def add(self, prepared: list[tuple[str, bytes]]) -> bytes:
        for name, data in prepared:
            self.archive.add(name, data)
        return self.archive.drain()

    def finish(self) -> bytes:
        table = io.StringIO()
        writer = csv.writer(table)
        writer.writerow(("file", "address", "source"))
        for i in range(self.answer.count):
            address = self.answer.address(i)
            writer.writerow((_file_name(i, address), address, "synthetic"))
        self.archive.add("images.csv", table.getvalue().encode())
        return self.archive.close()

    def close(self) -> None:
        self.archive.close()


def _file_name(position: int, address: str) -> str:
    # Flat and quoted, so that no class name can make an archive unpack outside its folder.
    return f"{position:06d}_{quote(address, safe='+').replace('%2F', '_')}.png"


class NpzWriter:
    """NumPy arrays: `pixels`, uint8 (N, H, W, C), `labels`, `classes`, `address`, `source`, `model`, `seed` and
    `index`.
    """

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.archive = _Archive(whole_entries=False)
        info = answer.info
        shape = (answer.count, info.size, info.size, info.channels)
        self.pixels = self.archive.open("pixels.npy")
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.pixels, header)
        self.columns: list[Images] = []

    def prepare(self, offset: int, pixels: np.ndarray) -> Images:
        return self.answer.rows(offset, pixels)

    def add(self, prepared: Images) -> bytes:
        self.pixels.write(np.ascontiguousarray(prepared.pixels).data)
        self.columns.append(replace(prepared, pixels=prepared.pixels[:, :0]))  # the rest is small, and comes last
        return self.archive.drain()

    def finish(self) -> bytes:
        self.pixels.close()
        rows = Images.concatenate(self.columns)
        assert rows.model is not None
        arrays = {
            "labels": rows.labels,
            "classes": np.array(self.answer.info.classes, dtype=str),
            "address": rows.image_id.astype(str),
            "source": rows.source.astype(str),
            "model": rows.model.astype(str),
            "seed": np.asarray(rows.seed),
            "index": np.asarray(rows.index),
        }
        for name, array in arrays.items():
            with self.archive.open(f"{name}.npy") as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
        return self.archive.close()

    def close(self) -> None:
        self.pixels.close()
        self.archive.close()
