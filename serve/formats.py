"""The formats of an answer: which one a client accepts, and synthetic images as its bytes.

The same images give the same bytes, today and tomorrow: archives carry no clock time.
"""

import csv
import io
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serve.problems import Problem, shown
from vaegan import images as image_files
from vaegan import shards
from vaegan.shards import Images


@dataclass(frozen=True)
class Format:
    name: str
    media_type: str
    suffix: str


PNG = Format("png", "image/png", ".png")
ZIP = Format("zip", "application/zip", ".zip")
NPZ = Format("npz", "application/x-npz", ".npz")
PARQUET = Format("parquet", "application/vnd.apache.parquet", ".parquet")
FORMATS = (PNG, ZIP, NPZ, PARQUET)

EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a ZIP entry can have


def negotiate(accept: str | None, count: int) -> Format:
    """The format that an Accept header prefers (RFC 9110, 12.5.1); without one, PNG for one image and ZIP for more.

    Raises:
        Problem: 406 where none of the formats is acceptable, or only PNG is and several images are asked for.
    """
    default = PNG if count == 1 else ZIP
    offers = [default, *(f for f in FORMATS if f not in (default, PNG))]  # a PNG holds one image
    best = max(offers, key=lambda offer: _quality(accept or "*/*", offer.media_type))  # the first of equals
    if _quality(accept or "*/*", best.media_type) > 0:
        return best
    known = ", ".join(f.media_type for f in offers)
    if count > 1 and _quality(accept or "*/*", PNG.media_type) > 0:
        raise Problem(406, f"{PNG.media_type} holds one image and count is {count}; accept one of {known}")
    raise Problem(406, f"the header Accept is {shown(accept)}, expected one of {known}")


def _quality(accept: str, media_type: str) -> float:
    """The q of the most specific range in an Accept header that matches; 0 where none does or it makes no sense."""
    kind = media_type.split("/")[0]
    found = {}
    for part in accept.split(","):
        media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
        q = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            found[media_range] = min(max(float(q), 0.0), 1.0)
        except ValueError:
            found[media_range] = 0.0
    return next((found[r] for r in (media_type, f"{kind}/*", "*/*") if r in found), 0.0)


def png(pixels: np.ndarray, address: str) -> bytes:
    """One image (H, W, C) as a PNG file whose text chunks say what it is and where it comes from."""
    text = {
        "Title": f"Synthetic image {address}",
        "Description": "synthetic: made by a generative model, not fit for diagnosis",
        "Software": "AugRay",
        "AugRay-Synthetic": "true",
        "AugRay-Address": address,
    }
    return image_files.encode_png(pixels, text)


def zip_of_pngs(files: Sequence[bytes], addresses: Sequence[str]) -> bytes:
    """PNG files in one archive, beside images.csv, which gives the address of each."""
    # Flat and quoted, so that no class name can make an archive unpack outside its folder.
    names = [f"{i:06d}_{quote(address, safe='+').replace('%2F', '_')}.png" for i, address in enumerate(addresses)]
    table = io.StringIO()
    csv.writer(table).writerows(
        [("file", "address", "source"), *((n, a, "synthetic") for n, a in zip(names, addresses, strict=True))]
    )
    return _archive([("images.csv", table.getvalue().encode()), *zip(names, files, strict=True)])


def npz(images: Images, addresses: Sequence[str], classes: Sequence[str]) -> bytes:
    """Images as arrays that `numpy.load` reads without pickle, under the names of `Images` plus address and classes."""
    assert images.model is not None
    arrays = {
        "pixels": images.pixels,
        "labels": images.labels,
        "classes": np.array(classes, dtype=str),
        "address": np.array(addresses, dtype=str),
        "patient_id": images.patient_id.astype(str),
        "image_id": images.image_id.astype(str),
        "source": images.source.astype(str),
        "model": images.model.astype(str),
        "seed": np.asarray(images.seed),
        "index": np.asarray(images.index),
    }
    return _archive((f"{name}.npy", _npy(array)) for name, array in arrays.items())


def parquet(images: Images, *, task: str, classes: Sequence[str]) -> bytes:
    """Images in the schema of a dataset's shards: append the file to a dataset, or read it with `vaegan.shards`."""
    height, width, channels = images.pixels.shape[1:]
    schema = shards.schema(task=task, classes=classes, height=height, width=width, channels=channels)
    sink = pa.BufferOutputStream()
    pq.write_table(shards.to_table(images, schema), sink, compression="zstd", row_group_size=shards.ROW_GROUP)
    return sink.getvalue().to_pybytes()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _archive(files: Iterable[tuple[str, bytes]]) -> bytes:
    """A ZIP file, stored: PNG data is compressed already, and raw noise-like pixels gain little."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files:
            archive.writestr(zipfile.ZipInfo(name, EPOCH), data)
    return buffer.getvalue()
