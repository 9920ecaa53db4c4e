"""Small sources of every format, then damage of every kind: `prepare` must give a dataset or a sentence.

    python tests/vaegan/preparation/fuzz.py --cases 1000 --seed 7
    python tests/vaegan/preparation/fuzz.py --cases 1 --seed 7 --first 123 --keep /tmp/case    # one of them again

Case N of a seed is the same wherever and whenever it runs.
"""

import argparse
import csv
import faulthandler
import gzip
import io
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from cluster.cli import describe
from cluster.errors import UserError
from vaegan import importers
from vaegan.importers.base import ColumnsConfig, DicomConfig, RadiographConfig
from vaegan.preparation.config import PrepareConfig
from vaegan.preparation.pipeline import prepare
from vaegan.preparation.spool import decode_part
from vaegan.shards import FINDINGS, REJECTS, DatasetWriter, Images, Manifest, read_manifest, read_split

Rng = np.random.Generator
SIDE = 12  # px of the sources' images
SECONDS = 10  # a case takes a hundredth of it

WORDS = [
    "", " ", "0", "1", "-1", "2", "nan", "NaN", "inf", "1e999", "-0.0", "00001280", "99999999999999999999", "0x1F",
    "true", "None", "null", "No Finding", "Mass|Edema", "|", "||", "a|", ",", ";", "\t", '"', '""', "'", "\\", "/",
    "..", "../../etc/passwd", "/etc/passwd", "/dev/zero", "C:\\films\\x.png", "x" * 5000, "\x00", "\ufeff",
    "\u202e", "\xe9", "é", "\x85", "\u2028", "\n", "\r", "\r\n", "🩻", "train", "TEST", "valid", "all", "=cmd()",
    "{}", "%s", "$HOME", "~", "*",
]  # fmt: skip
RAW = [
    b"\xff\xfe",
    b"\xfe\xff",
    b"\xef\xbb\xbf",
    b"\0",
    b"\xff",
    b"\r",
    b"\n",
    b'"',
    b"\x1a",
    b"\xf0\x9f\xa9",
    b"PAR1",
    b"PK\3\4",
]


class Hang(BaseException):
    """Not an `Exception`, since what swallows those must not swallow this."""


@dataclass
class Outcome:
    """What became of a case: "dataset" or the sentence's first words."""

    kind: str
    said: str
    seconds: float


# ---------------------------------------------------------------------------------------------------------------------
# Sources


def film(rng: Rng) -> np.ndarray:
    """Smooth noise, (SIDE, SIDE) uint8: no two are near copies."""
    return np.asarray(Image.fromarray(rng.integers(0, 256, (5, 5), dtype=np.uint8)).resize((SIDE, SIDE)))


def encoded(rng: Rng, kind: str) -> bytes:
    """A film as an image file of Pillow's format `kind`, of any mode that it has."""
    array = film(rng)
    modes = {
        "PNG": [array, np.dstack([array] * 3), np.dstack([array] * 4), array > 99, array.astype(np.uint16) * 255],
        "TIFF": [array, array.astype(np.float32), array.astype(np.uint16) * 9, np.dstack([array, array, array.T])],
        "JPEG": [array, np.dstack([array] * 3)],
    }.get(kind, [array, np.dstack([array, array.T, array])])
    buffer = io.BytesIO()
    Image.fromarray(modes[rng.integers(len(modes))]).save(buffer, kind)
    return buffer.getvalue()


KINDS = {"png": "PNG", "jpg": "JPEG", "tif": "TIFF", "gif": "GIF", "bmp": "BMP", "webp": "WEBP"}


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def picture(folder: Path, stem: str, rng: Rng, kinds: tuple[str, ...] = tuple(KINDS)) -> str:
    """Write an image file; returns its name."""
    suffix = kinds[rng.integers(len(kinds))]
    write(folder / f"{stem}.{suffix}", encoded(rng, KINDS[suffix]))
    return f"{stem}.{suffix}"


def make_folder(root: Path, rng: Rng) -> dict[str, Any]:
    splits = ["train/", "test/"] if rng.random() < 0.5 else [""]
    for i in range(int(rng.integers(8, 16))):
        picture(root / splits[i % len(splits)] / "AB"[i // 2 % 2], f"p{i // 2}-{i}", rng)
    return {"patient_regex": r"p(\d+)-"} if rng.random() < 0.5 else {}


def write_table(path: Path, columns: dict[str, list[Any]], rng: Rng) -> None:
    """As CSV of some dialect."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter="\t" if ".tsv" in path.name else ",;"[rng.integers(2)])
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    data = buffer.getvalue().encode()
    write(path, gzip.compress(data) if path.suffix == ".gz" else data)


def made_labels(rng: Rng, rows: int) -> list[Any]:
    """A column of labels of one of the kinds that tables have."""
    kinds = [["0", "1"], ["normal", "ill"], ["Mass|Edema", "Mass", "No Finding"], [0, 1, 2]]
    values = kinds[rng.integers(len(kinds))]
    return [values[i % len(values)] for i in range(rows)]


def table_columns(rng: Rng, rows: int) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {"label": made_labels(rng, rows)}
    if rng.random() < 0.6:
        columns["patient_id"] = [f"p{i // 2}" for i in range(rows)]
    if rng.random() < 0.4:
        columns["split"] = [("train", "train", "val", "test")[i // 2 % 4] for i in range(rows)]
    if rng.random() < 0.4:
        columns["source_id"] = [f"id{i}" for i in range(rows)]
    columns["site"] = [f"s{i % 3}" for i in range(rows)]
    return columns


def make_table(root: Path, rng: Rng) -> dict[str, Any]:
    rows = int(rng.integers(8, 16))
    paths = [f"films/{picture(root / 'films', f'f{i}', rng)}" for i in range(rows)]
    if rng.random() < 0.3:
        paths = [path.rpartition("/")[2] for path in paths]
    columns = {"path": paths} | table_columns(rng, rows)
    if rng.random() < 0.3:
        columns = {"path": paths, "mass": [i % 2 for i in range(rows)], "edema": [i % 3 // 2 for i in range(rows)]}
        settings: dict[str, Any] = {"columns": ColumnsConfig(findings=("mass", "edema"))}
    else:
        settings = {"columns": ColumnsConfig(group="site" if rng.random() < 0.3 else None)}
    name = ["t.csv", "t.tsv", "t.csv.gz", "t.parquet"][rng.integers(4)]
    if name == "t.parquet":
        pq.write_table(pa.table(columns), root / name)
    else:
        write_table(root / name, columns, rng)
    return settings


def make_parquet(root: Path, rng: Rng) -> dict[str, Any]:
    for part in range(int(rng.integers(1, 3))):
        rows = int(rng.integers(8, 16))
        films: list[Any] = [encoded(rng, "PNG") for _ in range(rows)]
        if part == 0:
            in_structs, as_lists, columns = rng.random() < 0.3, rng.random() < 0.2, table_columns(rng, 99)
        images = [{"bytes": data, "path": None} for data in films] if in_structs else films
        table = {"image": images} | {name: values[:rows] for name, values in columns.items()}
        if as_lists:
            table["label"] = [[f"c{i % 2}"] for i in range(rows)]
        root.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), root / f"part-{part}.parquet", row_group_size=5)
    return {}


def make_nih(root: Path, rng: Rng) -> dict[str, Any]:
    rows = int(rng.integers(8, 16))
    names = [f"{i // 2 + 1:08d}_{i % 2:03d}.png" for i in range(rows)]
    for i, name in enumerate(names):
        write(root / f"images_{i % 2 + 1:03d}" / "images" / name, encoded(rng, "PNG"))
    columns = {
        "Image Index": names,
        "Finding Labels": [["No Finding", "Mass", "Mass|Edema"][i % 3] for i in range(rows)],
        "Follow-up #": [i % 2 for i in range(rows)],
        "Patient ID": [i // 2 + 1 for i in range(rows)],
        "Patient Age": [40 + i for i in range(rows)],
        "Patient Gender": ["MF"[i % 2] for i in range(rows)],
        "View Position": [["PA", "AP"][i % 2] for i in range(rows)],
    }
    write_table(root / "Data_Entry_2017.csv", columns, np.random.default_rng(0))
    if rng.random() < 0.5:
        write(root / "train_val_list.txt", "\n".join(names[: rows // 2 * 2 - 4]).encode())
        write(root / "test_list.txt", "\n".join(names[rows // 2 * 2 - 4 :]).encode())
    return {}


OBSERVED = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip


def observed(rng: Rng, rows: int) -> dict[str, list[Any]]:
    """Columns of 1.0, 0.0, -1.0 and blanks."""
    return {name: rng.choice(["", "1.0", "0.0", "-1.0"], rows, p=[0.5, 0.25, 0.24, 0.01]).tolist() for name in OBSERVED}


def radiographs(rng: Rng) -> dict[str, Any]:
    uncertain, views = ("zeros", "ones", "reject")[rng.integers(3)], ("frontal", "lateral", "all")[rng.integers(3)]
    return {"radiographs": RadiographConfig(uncertain=uncertain, views=views)}


def make_chexpert(root: Path, rng: Rng) -> dict[str, Any]:
    for table in ("train", "valid"):
        rows = int(rng.integers(16, 24) if table == "train" else rng.integers(4, 10))
        paths, views = [], []
        for i in range(rows):
            view = ("frontal", "lateral")[i % 2]
            path = f"{table}/patient{i // 2 + 1:05d}/study1/view{i % 2 + 1}_{view}.jpg"
            write(root / path, encoded(rng, "JPEG"))
            paths.append(f"CheXpert-v1.0-small/{path}")
            views.append(view.title())
        columns = {"Path": paths, "Sex": ["Male"] * rows, "Age": [50] * rows, "Frontal/Lateral": views,
                   "AP/PA": ["AP"] * rows}  # fmt: skip
        write_table(root / f"{table}.csv", columns | observed(rng, rows), np.random.default_rng(0))
    return radiographs(rng)


def make_mimic(root: Path, rng: Rng) -> dict[str, Any]:
    rows = int(rng.integers(14, 24))
    subjects, studies = [10000000 + i // 2 for i in range(rows)], [50000000 + i // 2 for i in range(rows)]
    names = [f"{i:08x}-aaaa-bbbb-cccc-{i:08x}" for i in range(rows)]
    for subject, study, name in zip(subjects, studies, names, strict=True):
        write(root / f"files/p{str(subject)[:2]}/p{subject}/s{study}/{name}.jpg", encoded(rng, "JPEG"))
    plain = np.random.default_rng(0)
    suffix = ".csv.gz" if rng.random() < 0.5 else ".csv"
    write_table(
        root / f"mimic-cxr-2.0.0-metadata{suffix}",
        {"dicom_id": names, "subject_id": subjects, "study_id": studies,
         "ViewPosition": [["PA", "AP", "LATERAL"][i % 3] for i in range(rows)]},
        plain,
    )  # fmt: skip
    several = slice(0, rows, 2)
    write_table(
        root / f"mimic-cxr-2.0.0-chexpert{suffix}",
        {"subject_id": subjects[several], "study_id": studies[several]} | observed(rng, len(subjects[several])),
        plain,
    )
    if rng.random() < 0.6:
        places = [("train", "train", "validate", "test")[i // 2 % 4] for i in range(rows)]
        columns = {"dicom_id": names, "study_id": studies, "subject_id": subjects, "split": places}
        write_table(root / f"mimic-cxr-2.0.0-split{suffix}", columns, plain)
    return radiographs(rng)


def make_medmnist(root: Path, rng: Rng) -> dict[str, Any]:
    arrays, colour, several = {}, rng.random() < 0.3, rng.random() < 0.3
    for split, rows in (("train", 12), ("val", 4), ("test", 5)):
        films = np.array([film(rng) for _ in range(rows)])
        arrays[f"{split}_images"] = np.repeat(films[..., None], 3, axis=3) if colour else films
        labels = rng.integers(0, 2, (rows, 3)) if several else np.arange(rows)[:, None] % 2
        arrays[f"{split}_labels"] = labels.astype(np.uint8)
    root.mkdir(parents=True, exist_ok=True)
    name = ["pneumoniamnist", "own", "chestmnist_64"][rng.integers(3)]
    (np.savez if rng.random() < 0.5 else np.savez_compressed)(root / f"{name}.npz", **arrays)
    return {}


def dicom_file(rng: Rng, patient: str, number: int) -> bytes:
    """An 8 to 16 bit film, MONOCHROME1 or 2."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = "1.2.840.10008.5.1.4.1.1.1", ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.PatientID, data.PatientName, data.Modality = patient, f"Name^{patient}", "DX"
    data.Rows = data.Columns = SIDE
    data.SamplesPerPixel, data.PixelRepresentation = 1, 0
    data.PhotometricInterpretation = ["MONOCHROME1", "MONOCHROME2"][rng.integers(2)]
    data.BitsAllocated = 16
    data.BitsStored, data.HighBit = 12, 11
    if rng.random() < 0.5:
        data.WindowCenter, data.WindowWidth = 1000, 1800
    data.PixelData = (film(rng).astype(np.uint16) * 16).tobytes()
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def make_dicom(root: Path, rng: Rng) -> dict[str, Any]:
    rows, with_table = int(rng.integers(8, 14)), rng.random() < 0.5
    names = [f"{'series' if with_table else 'AB'[i // 2 % 2]}/i{i}.dcm" for i in range(rows)]
    for i, name in enumerate(names):
        write(root / name, dicom_file(rng, f"pat{i // 2}", i))
    if not with_table:
        return {}
    path = [names, [f"i{i}" for i in range(rows)], [f"1.2.3.{i}" for i in range(rows)]][rng.integers(3)]
    write_table(root / "labels.csv", {"path": path} | table_columns(rng, rows), rng)
    return {"dicom": DicomConfig(labels=root / "labels.csv")}


def make_dataset(root: Path, rng: Rng, seed: int = 0) -> dict[str, Any]:
    multilabel, channels, names = rng.random() < 0.4, int(rng.choice([1, 3])), ["a", "b", "c"]
    task = "multilabel" if multilabel else "multiclass"
    with DatasetWriter(root, task=task, classes=names, height=8, width=8, channels=channels, rows_per_group=5) as out:
        for split, rows in (("train", 14), ("val", 4), ("test", 5)):
            pixels = rng.integers(0, 256, (rows, 8, 8, channels), dtype=np.uint8)
            labels = rng.integers(0, 2, (rows, 3)) if multilabel else np.eye(3)[np.arange(rows) % 3]
            who, ids = ([f"{split}-{what}{seed}-{i // n}" for i in range(rows)] for what, n in (("p", 2), ("i", 1)))
            images = Images.real(pixels, labels.astype(np.uint8), who, ids)
            if rng.random() < 0.2:
                images.source[:] = "synthetic"
                images.model = np.full(rows, "m", dtype=object)
                images.seed = images.index = np.arange(rows)
            out.add(split, images)
        out.finish()
    if seed == 0 and rng.random() < 0.3:
        make_dataset(root.parent / "other", rng, seed=1)
        return {"merge": (root.parent / "other",)}
    return {}


BUILDERS: dict[str, Callable[[Path, Rng], dict[str, Any]]] = {
    "folder": make_folder,
    "table": make_table,
    "parquet": make_parquet,
    "nih": make_nih,
    "chexpert": make_chexpert,
    "mimic": make_mimic,
    "medmnist": make_medmnist,
    "dicom": make_dicom,
    "dataset": make_dataset,
}


# ---------------------------------------------------------------------------------------------------------------------
# Damage


def files_of(root: Path) -> list[Path]:
    """Regular files that are really there, in an order that doesn't depend on the file system."""
    found = [Path(where) / name for where, _, names in os.walk(root) for name in names]
    return sorted(path for path in found if path.is_file() and not path.is_symlink())


def chosen(root: Path, rng: Rng) -> Path:
    """Any file, but tables more often than they are among the images."""
    files = files_of(root)
    tables = [path for path in files if path.name.endswith((".csv", ".gz", ".tsv", ".txt", ".parquet", ".json"))]
    among = tables if tables and rng.random() < 0.6 else files
    return among[rng.integers(len(among))]


def flip(data: bytes, rng: Rng) -> bytes:
    changed = bytearray(data)
    for at in rng.integers(0, max(len(data), 1), int(rng.integers(1, 9))) if data else ():
        changed[at] = rng.integers(256)
    return bytes(changed)


def head_flip(data: bytes, rng: Rng) -> bytes:
    return flip(data[:300], rng) + data[300:]


def tail_flip(data: bytes, rng: Rng) -> bytes:
    return data[:-400] + flip(data[-400:], rng)


def cut(data: bytes, rng: Rng) -> bytes:
    return data[: rng.integers(0, len(data) + 1)]


def without(data: bytes, rng: Rng) -> bytes:
    at, length = rng.integers(0, len(data) + 1), rng.integers(1, 200)
    return data[:at] + data[at + length :]


def insert(data: bytes, rng: Rng) -> bytes:
    at, new = rng.integers(0, len(data) + 1), [rng.bytes(int(rng.integers(1, 50))), RAW[rng.integers(len(RAW))]]
    return data[:at] + new[rng.integers(2)] + data[at:]


def huge(data: bytes, rng: Rng) -> bytes:
    """A number somewhere becomes the largest there is."""
    at, width = rng.integers(0, len(data) + 1), int(rng.choice([1, 2, 4, 8]))
    return data[:at] + b"\xff" * width + data[at + width :]


def repeat(data: bytes, rng: Rng) -> bytes:
    at = rng.integers(0, len(data) + 1)
    return data[:at] + data[at // 2 :]


def empty(_data: bytes, _rng: Rng) -> bytes:
    return b""


def noise(_data: bytes, rng: Rng) -> bytes:
    return rng.bytes(int(rng.integers(1, 500)))


BYTES = [flip, flip, head_flip, tail_flip, cut, cut, without, insert, huge, repeat, empty, noise]


def change_cells(data: bytes, rng: Rng) -> bytes:
    """Fields, rows or the header of a text table."""
    lines = data.decode("utf-8", "replace").split("\n")
    delimiter = next((each for each in ",;\t" if each in lines[0]), ",")
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(lines)))
        cells = lines[at].split(delimiter)
        cells[rng.integers(len(cells))] = WORDS[rng.integers(len(WORDS))]
        lines[at] = delimiter.join(cells)
    return "\n".join(lines).encode("utf-8", "replace")


def change_rows(data: bytes, rng: Rng) -> bytes:
    lines = data.split(b"\n")
    at = int(rng.integers(len(lines)))
    change = int(rng.integers(5))
    if change == 0:
        lines.insert(at, lines[rng.integers(len(lines))])
    elif change == 1:
        del lines[at]
    elif change == 2:
        lines[at] += b",more;of\tit"
    elif change == 3:
        lines.insert(at, rng.bytes(20))
    else:
        lines[at] = lines[at][: len(lines[at]) // 2]
    return b"\n".join(lines)


def recode(data: bytes, rng: Rng) -> bytes:
    text = data.decode("utf-8", "replace")
    codecs = ["utf-16", "utf-8-sig", "utf-16-be", "cp037", "utf-32", "shift-jis", "latin-1"]
    changed = text.replace("p1", "pé1").encode(codecs[rng.integers(len(codecs))], "replace")
    return [changed, text.replace("\n", "\r").encode(), text.replace("\n", "\r\n").encode()][rng.integers(3)]


def change_json(data: bytes, rng: Rng) -> bytes:
    """One value anywhere in it becomes another."""
    content = json.loads(data)
    at, path = content, []
    while isinstance(at, dict | list) and at and (not path or rng.random() < 0.8):
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        path.append((at, keys[rng.integers(len(keys))]))
        at = at[path[-1][1]]
    holder, key = path[-1]
    values = [None, -1, 0, 1e300, 10**30, "", "x", "../x", [], {}, [[]], {"a": 1}, True, "\0"]
    if rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = values[rng.integers(len(values))]
    return json.dumps(content).encode()


def in_place(path: Path, change: Callable[[bytes, Rng], bytes], rng: Rng) -> None:
    data = path.read_bytes()
    try:
        plain = gzip.decompress(data) if path.suffix == ".gz" and rng.random() < 0.7 else None
        path.write_bytes(change(data, rng) if plain is None else gzip.compress(change(plain, rng)))
    except (
        ValueError,
        EOFError,
        OSError,
        zlib.error,
    ):  # damaged already: not the text or JSON any more that `change` needs
        path.write_bytes(flip(data, rng))


def contents(root: Path, rng: Rng) -> str:
    path = chosen(root, rng)
    change = BYTES[rng.integers(len(BYTES))]
    text = path.name.removesuffix(".gz")
    if text.endswith((".csv", ".tsv", ".txt")) and rng.random() < 0.7:
        change = [change_cells, change_cells, change_rows, recode][rng.integers(4)]
    if text.endswith(".json") and rng.random() < 0.8:
        change = change_json
    in_place(path, change, rng)
    return f"{change.__name__} {path.relative_to(root)}"


ODD_NAMES = [b"new\nline.png", b"\xff\xfe.png", b"\xc3\xa9.png", b"e\xcc\x81.jpg", b" .png", b"-rf.png", b"a'b\"c.png",
             b"tab\t.png", b"x.PNG", b"x.png.png", b"CON.png", b"%41.png", b"*.png", b"\xe2\x80\xae.png", b"x",
             b".hidden.png", b"y" * 240 + b".png"]  # fmt: skip


def rename(root: Path, rng: Rng) -> str:
    path = chosen(root, rng)
    new = path.with_name(os.fsdecode(ODD_NAMES[rng.integers(len(ODD_NAMES))]))
    path.rename(new)
    return f"rename {path.relative_to(root)} {new.name!a}"


def rename_folder(root: Path, rng: Rng) -> str:
    folders = sorted(Path(where) / name for where, names, _ in os.walk(root) for name in names)
    if not folders:
        return "nothing"
    path = folders[rng.integers(len(folders))]
    new = path.with_name(os.fsdecode([b"\xff", b"new\nline", b"train", b"x|y", b" ", b".hidden"][rng.integers(6)]))
    if not new.exists():
        path.rename(new)
    return f"rename folder {path.relative_to(root)} {new.name!a}"


def swap(root: Path, rng: Rng) -> str:
    one, other = chosen(root, rng), chosen(root, rng)
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    return f"swap {one.relative_to(root)} {other.relative_to(root)}"


def delete(root: Path, rng: Rng) -> str:
    path = chosen(root, rng)
    path.unlink()
    return f"delete {path.relative_to(root)}"


def copy(root: Path, rng: Rng) -> str:
    path, beside = chosen(root, rng), chosen(root, rng)
    shutil.copy(path, beside.with_name(f"copy-{path.name}"))
    return f"copy {path.relative_to(root)}"


def replace(root: Path, rng: Rng) -> str:
    """By what is no regular file."""
    path = chosen(root, rng)
    path.unlink()
    kind = ["folder", "loop", "dangling", "fifo", "device", "upwards", "text"][rng.integers(7)]
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "upwards":
        path.symlink_to("..")
    else:
        path.write_text("not what it seems")
    return f"{kind} for {path.relative_to(root)}"


def link_folder(root: Path, _rng: Rng) -> str:
    if not (root / "loop").is_symlink():
        (root / "loop").symlink_to("..")
    return "a folder that leads upwards"


def unreadable(root: Path, rng: Rng) -> str:
    path = chosen(root, rng)
    path.chmod(0)  # no hindrance to root
    return f"chmod 0 {path.relative_to(root)}"


DAMAGE = [contents] * 10 + [rename] * 2 + [replace] * 3 + [rename_folder, swap, delete, copy, link_folder, unreadable]


def odd_settings(config: PrepareConfig, classes: tuple[str, ...], rng: Rng) -> dict[str, Any]:
    """Flags as a user may combine them, some of them wrong."""
    changes: list[dict[str, Any]] = [
        {},
        {"channels": 3},
        {"size": int(rng.choice([8, 9, 16]))},
        {"aspect": ("pad", "squash")[rng.integers(2)]},
        {"subset": float(rng.choice([0.001, 0.5, 0.9]))},
        {"split": "make"},
        {"leaks": "keep"},
        {"val": ("keep", "carve")[rng.integers(2)]},
        {"fractions": [(1.0, 0.0, 0.0), (0.5, 0.5, 0.0), (0.34, 0.33, 0.33), (0.01, 0.01, 0.98)][rng.integers(4)]},
        {"hash_patients": True},
        {"strict": True},
        {"allow_one_class": True, "classes": classes[:1]},
        {"classes": (*classes[::-1], *rng.choice(["", "x"], 1).tolist())} if rng.random() < 0.3 else {},
        {"classes": classes[::-1]},
        {"rename": (f"{classes[0]}=new", f"{classes[-1]}=new")} if classes else {},
        {"rename": (f"{classes[0]}={classes[-1]}",), "allow_one_class": True} if classes else {},
        {"patient_regex": [".*", "", "(", "(a)?", r"(\d)", "(?P<x>p)|(i)"][rng.integers(6)]},
        {"source": list(BUILDERS)[rng.integers(len(BUILDERS))]} if rng.random() < 0.3 else {},
    ]
    found: dict[str, Any] = {}
    for _ in range(int(rng.integers(0, 3))):
        found |= changes[rng.integers(len(changes))]
    return {name: value for name, value in found.items() if name != "patient_regex" or not config.merge}


# ---------------------------------------------------------------------------------------------------------------------
# One case


def here(parts: Iterator[Any], how: Any) -> Iterator[int]:
    """As a pool: decodes in this thread, which the alarm can end."""
    for part in parts:
        yield decode_part(part.records, how, part.path)


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise Hang(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(seconds + 10, exit=True)  # for what no Python code can interrupt
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_case(name: str, rng: Rng, work: Path, say: Callable[[str], None] = lambda _: None) -> Outcome:
    """Build, damage, prepare, check; raises whatever `prepare` raises that is no `UserError`, and AssertionError."""
    root, out = work / "in" / "source", work / "out" / "dataset"
    settings = BUILDERS[name](root, rng)
    out.parent.mkdir(parents=True)
    damaged = [root] if name != "dataset" or not settings else [root, *settings["merge"]]
    for _ in range(int(rng.choice([0, 1, 1, 2, 3]))):
        say(DAMAGE[rng.integers(len(DAMAGE))](damaged[rng.integers(len(damaged))], rng))
        if not files_of(damaged[-1]) or not files_of(root):
            break
    images = root if name not in ("table", "medmnist", "parquet") or rng.random() < 0.3 else next(
        iter(files_of(root)[-1:]), root
    )  # fmt: skip
    config = PrepareConfig(**{"images": images, "out": out, "size": 8, "num_workers": 1} | settings)
    started = time.monotonic()
    with alarm(SECONDS), warnings.catch_warnings(record=True) as told, redirect_stderr(io.StringIO()):
        warnings.simplefilter("always")
        outcome = _prepared(config, settings, rng, say)
    assert not told, f"a warning: {told[0].message} ({told[0].filename}:{told[0].lineno})"
    outcome.seconds = time.monotonic() - started
    return outcome


def _prepared(config: PrepareConfig, settings: dict[str, Any], rng: Rng, say: Callable[[str], None]) -> Outcome:
    try:
        classes = importers.open_source(config).classes
    except UserError:
        classes = ()
    changed = odd_settings(config, classes, rng)
    say(f"settings {settings | changed} images {config.images}")
    source = None
    try:
        config = PrepareConfig(**{name: getattr(config, name) for name in config.__dataclass_fields__} | changed)
        source = importers.open_source(config, config.source)
        _check_source(source)
        manifest = prepare(config, here)
    except UserError as error:
        text = describe(error)
        assert not os.listdir(config.out.parent), f"left behind: {os.listdir(config.out.parent)}"
        return Outcome("refused", text, 0)
    assert source is not None
    check_dataset(config, source, manifest)
    assert prepare(config, here) == read_manifest(config.out), "a second time isn't the same"
    return Outcome("dataset", f"{manifest.rejects} rejects", 0)


def _check_source(source: importers.Source) -> None:
    """As many records as promised, twice the same."""
    try:
        records = [(r.name, r.image_id, r.labels, r.patient_id, r.split, r.problem) for r in source.records()]
        again = [(r.name, r.image_id, r.labels, r.patient_id, r.split, r.problem) for r in source.records()]
    except UserError:
        return
    assert len(records) == source.num_records, f"{len(records)} records, {source.num_records} promised"
    assert records == again
    for *_, labels, _patient, split, problem in records:
        assert problem or (labels is not None and set(labels) <= set(source.classes)), (labels, source.classes)
        assert problem or source.task == "multilabel" or len(labels) == 1, labels
        assert split in (None, "train", "val", "test")


def check_dataset(config: PrepareConfig, source: importers.Source, manifest: Manifest) -> None:
    """No row is lost, all can be read, and nobody is in two splits."""
    assert sorted(os.listdir(config.out.parent)) == [config.out.name], os.listdir(config.out.parent)
    splits = {split: read_split(config.out, split) for split in manifest.splits}
    rows, report = sum(map(len, splits.values())), manifest.report
    removed = report["leaks"]["images"] if config.leaks == "remove" else 0
    left_out = sum(report["left_out"].values())
    assert rows + manifest.rejects + left_out + removed == source.num_records, (
        f"{rows} rows + {manifest.rejects} rejects + {left_out} left out + {removed} leaks != {source.num_records}"
    )
    rejects = pq.read_table(config.out / REJECTS).to_pylist()
    assert len(rejects) == manifest.rejects
    assert all(row["path"] and row["reason"] for row in rejects), rejects
    for row in pq.read_table(config.out / FINDINGS).to_pylist():
        for name in ("thumbnail", "other_thumbnail"):
            assert row[name] is None or Image.open(io.BytesIO(row[name])).size == (config.size, config.size)
    for images in splits.values():
        assert images.pixels.shape[1:] == (config.size, config.size, config.channels)
        assert manifest.task == "multilabel" or (images.labels.sum(axis=1) == 1).all()
    if config.leaks == "remove":
        for what in (lambda images: images.patient_id, lambda images: [p.tobytes() for p in images.pixels]):
            seen = Counter(value for images in splits.values() for value in set(what(images)))
            assert max(seen.values()) == 1, f"in two splits: {seen.most_common(1)}"
    json.loads((config.out / "manifest.json").read_text(encoding="utf-8"))


def rng_of(seed: int, number: int) -> Rng:
    return np.random.default_rng([seed, number])


def fuzz(
    seed: int, first: int, cases: int, formats: list[str], keep: Path | None = None
) -> tuple[Counter[Any], list[str]]:
    """Run cases; returns counts of (format, outcome), and a text for each failure."""
    counts: Counter[Any] = Counter()
    failures = []
    for number in range(first, first + cases):
        name = formats[number % len(formats)]
        told: list[str] = []
        work = Path(tempfile.mkdtemp(prefix="fuzz-", dir=os.environ.get("AUGRAY_FUZZ_DIR")))
        try:
            outcome = run_case(name, rng_of(seed, number), work, told.append)
            counts[name, outcome.kind] += 1
            if outcome.kind == "refused":
                counts[name, "said", re.sub(r"'[^']*'|[^ ]*/[^ ]*|\d+", "_", outcome.said)[:60]] += 1
        except (Exception, Hang) as error:
            counts[name, "FAILED"] += 1
            frames = traceback.extract_tb(error.__traceback__)
            ours = [f for f in frames if "/vaegan/" in f.filename and "/tests/" not in f.filename] or list(frames)
            where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
            last = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
            failures.append(
                f"seed {seed} case {number} {name}: {type(error).__name__}: {' '.join(str(error).split())[:300]} "
                f"at {where} ({last})\n    " + "\n    ".join(told)
            )
        finally:
            if keep is not None:
                shutil.rmtree(keep, ignore_errors=True)
                shutil.copytree(work, keep, symlinks=True, ignore=_fifos)
            shutil.rmtree(work, ignore_errors=True)
    return counts, failures


def _fifos(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not (Path(folder) / name).is_file() and not (Path(folder) / name).is_dir()]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--formats", nargs="+", default=list(BUILDERS))
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--sentences", type=int, default=0, help="how many of the commonest refusals to show")
    arguments = parser.parse_args()
    started = time.monotonic()
    counts, failures = fuzz(arguments.seed, arguments.first, arguments.cases, arguments.formats, arguments.keep)
    for failure in failures:
        print(failure)
    for name in arguments.formats:
        print(name, {kind: counts[name, kind] for kind in ("dataset", "refused", "FAILED")})
        said = [(n, key[2]) for key, n in counts.most_common() if key[:2] == (name, "said")]
        for number, text in said[: arguments.sentences]:
            print(f"    {number} {text}")
    took = f"{time.monotonic() - started:.0f} s"
    print(f"{arguments.cases} cases of seed {arguments.seed} in {took}, {len(failures)} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
