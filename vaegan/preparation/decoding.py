"""One record to one row: its pixels at the size asked for, what is remembered of it, or in words why there is none.

Runs in worker processes, so nothing here may need PyTorch.
"""

import hashlib
import json
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cluster.errors import UserError
from vaegan import dicom, duplicates
from vaegan.images import Aspect, check_pixels, decode_for, perceptual_hash, pixel_hash, resize
from vaegan.importers.base import DicomConfig, Record
from vaegan.preparation.identity import Pseudonyms

MAX_FILE_BYTES = 2**30
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
OUTSIDE = "a patient outside the subset"
COLOUR_LEVELS = 16
"""By how much red, green and blue must part somewhere in a 32 x 32 thumbnail for an image to be in colour; grey films
saved as RGB stay below."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How records become rows.

    dicom: None where DICOM files aren't expected.
    classes: those of the dataset, in order; `new_names` renames the source's before they are looked up.
    keep_names: whether rows keep what their hashes stand for.
    subset: share of patients to take; see `Decoding.takes`.
    strict: whether the first record that can't be used ends it all.
    """

    size: int
    channels: int
    aspect: Aspect
    classes: tuple[str, ...]
    multilabel: bool
    new_names: Mapping[str, str] = field(default_factory=dict)
    dicom: DicomConfig | None = None
    pseudonym: Pseudonyms = field(default_factory=lambda: Pseudonyms(None))
    keep_names: bool = False
    subset: float = 1.0
    seed: int = 0
    strict: bool = False

    def takes(self, patient: str) -> bool:
        """Whether a patient belongs to the subset: a hash of seed and name decides, so that no list is needed."""
        if self.subset >= 1:
            return True
        digest = hashlib.sha256(f"{self.seed} {patient}".encode(errors="surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") < self.subset * 2**64


@dataclass(slots=True)
class Row:
    """What became of a record.

    Names are hashed already where they must be. `problem` and `left_out` say why there are no pixels.
    file_sha256: of the record's own file, empty where that isn't read, None where it has none.
    source, source_patient: what `image_id` and `patient_id` stand for, where a linkage was asked for.
    """

    name: str
    image_id: str
    patient_id: str
    group: str | None
    labels: np.ndarray
    split: str | None
    problem: str | None = None
    left_out: str | None = None
    file_sha256: bytes | None = None
    height: int = 0
    width: int = 0
    colour: bool = False
    pixels: np.ndarray | None = None
    thumbnail: np.ndarray | None = None
    pixel_hash: bytes = b""
    perceptual_hash: int = 0
    asides: str = ""
    model: str | None = None
    seed: int | None = None
    index: int | None = None
    synthetic: bool = False
    labelled: bool = True
    source: str = ""
    source_patient: str = ""


@dataclass(frozen=True, slots=True)
class _Film:
    pixels: np.ndarray
    height: int
    width: int
    patient_id: str | None = None
    image_id: str | None = None


def decode_record(record: Record, how: Decoding) -> Row:
    """The record as a row; whatever is wrong with it is in the row, nothing is raised."""
    film, problem, left_out = None, record.problem, why_left_out(record, how)
    digest = b"" if isinstance(record.image, Path) else None
    if not (problem or left_out):
        try:
            data, digest = _data(record)
            film = _film(data, how)
        except UserError as error:
            problem = str(error)
        except OSError as error:
            problem = f"can't be read ({error.strerror or error})"
        except MemoryError:
            problem = "takes more memory than there is"
        except Exception as error:  # one odd file, however a decoder trips over it, must not end a run of thousands
            problem = f"the decoder failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    row = _named(record, film, how)
    if problem and how.pseudonym.salt is not None:
        problem = QUOTED.sub("...", problem)  # a label or a name as the source has it
    row.problem, row.left_out, row.file_sha256 = problem, None if problem else left_out, digest
    if film is not None and record.patient_id is None and not how.takes(row.source_patient or row.patient_id):
        row.left_out, film = OUTSIDE, None
    if film is not None:
        try:
            _fill(row, film, how)
        except UserError as error:
            row.problem = str(error)
    if not how.keep_names:
        row.source = row.source_patient = ""
    return row


def why_left_out(record: Record, how: Decoding) -> str | None:
    """Why nobody asked for a record, in words, as far as that is known before it is read; None for one to be read."""
    if record.left_out or record.problem:
        return record.left_out
    if record.patient_id is not None and not how.takes(record.patient_id):
        return OUTSIDE
    if how.multilabel or not record.labels:
        return None
    wanted = any(how.new_names.get(label, label) in how.classes for label in record.labels)
    return None if wanted else "of a class that was not asked for"


def _data(record: Record) -> tuple[bytes | np.ndarray, bytes | None]:
    if not isinstance(record.image, Path):
        return record.image, None
    if problem := unfit(record.image):
        raise UserError(problem)
    data = record.image.read_bytes()
    return data, hashlib.sha256(data).digest()


def unfit(path: Path) -> str | None:
    """Why a file isn't read at all, in words; None for one that is."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # reading a pipe or a device may never end
        return "not a regular file but a folder, a pipe or a device"
    if found.st_size > MAX_FILE_BYTES:
        return f"a file of {found.st_size / 2**30:.1f} GiB is no image that can be taken"
    return None


def _film(data: bytes | np.ndarray, how: Decoding) -> _Film:
    if isinstance(data, np.ndarray):
        if data.ndim not in (2, 3) or not data.size or data.shape[2:] not in ((), (1,), (3,), (4,)):
            raise UserError(f"pixels of shape {data.shape}, expected (H, W), (H, W, 1) or (H, W, 3)")
        height, width = data.shape[:2]
        return _Film(check_pixels(data), height, width)
    if how.dicom is not None and dicom.is_dicom(data):
        found = dicom.decode_dicom(data, how.dicom)
        height, width = found.pixels.shape[:2]
        return _Film(found.pixels, height, width, found.patient_id, found.image_id)
    if dicom.has_preamble(data):
        raise UserError("a DICOM file among other images: prepare a folder of DICOM files with --source dicom")
    pixels, (height, width) = decode_for(data, how.size)
    return _Film(pixels, height, width)


def _named(record: Record, film: _Film | None, how: Decoding) -> Row:
    image_id = film.image_id if film is not None and film.image_id else record.image_id
    patient = record.patient_id or (film.patient_id if film is not None else None) or image_id
    labels = np.zeros(len(how.classes), dtype=np.uint8)
    for label in record.labels or ():
        if (name := how.new_names.get(label, label)) in how.classes:
            labels[how.classes.index(name)] = 1
    row = Row(
        name=how.pseudonym(record.name),
        image_id=how.pseudonym(image_id),
        patient_id=how.pseudonym(patient),
        group=None if record.group is None else how.pseudonym(record.group),
        labels=labels,
        labelled=record.labels is not None,
        split=record.split,
        asides=json.dumps(dict(record.asides), ensure_ascii=False) if record.asides else "",
        source=record.name,
        source_patient=patient,
    )
    if record.synthetic is not None:
        row.synthetic = True
        row.model, row.seed, row.index = record.synthetic.model, record.synthetic.seed, record.synthetic.index
    return row


def _fill(row: Row, film: _Film, how: Decoding) -> None:
    row.height, row.width = film.height, film.width
    row.colour = film.pixels.shape[2] == 3 and _in_colour(film.pixels)
    pixels = film.pixels
    if pixels.shape != (how.size, how.size, how.channels):
        pixels = resize(pixels, how.size, how.channels, how.aspect)
    check_pixels(pixels)  # again: the centred square can be constant where the whole wasn't
    row.pixels = pixels
    row.thumbnail = duplicates.thumbnail(pixels)
    row.pixel_hash = bytes.fromhex(pixel_hash(pixels))
    row.perceptual_hash = perceptual_hash(pixels)


def _in_colour(pixels: np.ndarray) -> bool:
    small = resize(pixels, duplicates.THUMBNAIL, 3, "squash").astype(np.int16)
    return bool((small.max(axis=2) - small.min(axis=2)).max() > COLOUR_LEVELS)
