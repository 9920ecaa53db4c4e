"""DICOM files: bytes in, pixels that are ready to resize and what identifies them out.

References are to parts of the standard: PS3.3 (what the attributes mean) and PS3.5 (how pixels are encoded). pydicom
decodes, with the help of Pillow and GDCM; all three come with the extra `dicom` and are imported when first used.
"""

import io
import logging
import re
import struct
import zlib
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Protocol

import numpy as np
from PIL import Image

from cluster.errors import UserError
from vaegan.gdcm_process import decode_apart
from vaegan.images import MAX_PIXELS, MAX_SCANS, QUIET, ROWS, TooManyPixels

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

INSTALL = "install it with: pip install 'augray[dicom]'"
GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")
DEFLATED = b"1.2.840.10008.1.2.1.99"
MAX_INFLATED = 2 * MAX_PIXELS + (1 << 24)
"""Bytes that a deflated file may unpack to: 16 bits for each pixel of the largest image, and a header."""
HEAD_BYTES = 2048
"""Holds the whole header that names the transfer syntax."""
IDENTIFIERS = ("SOPInstanceUID", "StudyInstanceUID", "PatientID")
MAX_ASPECT = 10.0
"""Of a pixel. Beyond it the header is wrong rather than the detector odd."""
SQUARE = 0.01
"""Pixels whose sides differ by less count as square: nobody sees it, and resampling would blur."""


class Choices(Protocol):
    """What of `vaegan.importers.base.DicomConfig` decides pixels. Importers stand above this file."""

    @property
    def window(self) -> int: ...

    @property
    def burned_in(self) -> str: ...


@dataclass(frozen=True, slots=True)
class DicomImage:
    """One decoded film.

    pixels: uint8 (H, W, 1) or (H, W, 3), square pixels; 0 is black and air is dark.
    patient_id: PatientID as the file has it, which says who it is: hash it at once. None where there is none.
    image_id: SOPInstanceUID; empty where there is none.
    study_id: StudyInstanceUID, None where there is none.
    """

    pixels: np.ndarray
    patient_id: str | None
    image_id: str
    study_id: str | None


def is_dicom(data: bytes) -> bool:
    """Whether a file's bytes, or the first few hundred of them, look like DICOM.

    That is `DICM` after a preamble of 128 bytes (PS3.10 7.1), or a data set that begins without one, as old archives
    wrote it: with a first element of group 2 or 8 whose VR or length is sensible.
    """
    return has_preamble(data) or _is_headerless(data)


def has_preamble(data: bytes) -> bool:
    """Whether it is surely DICOM: `DICM` after 128 bytes."""
    return data[128:132] == b"DICM"


def _is_headerless(data: bytes) -> bool:
    if len(data) < 8:
        return False
    for order in "<>":
        group, element, length = struct.unpack(f"{order}HHI", data[:8])
        if group in (0x0002, 0x0008) and element <= 0x0018:
            return length <= 1024 or (data[4:6].isalpha() and data[4:6].isupper())
    return False


def decode_dicom(data: bytes, config: Choices) -> DicomImage:
    """One DICOM file to 8 bits as a radiologist would see it.

    Grey: modality LUT or rescale, then VOI LUT or window (`config.window` chooses), scaled to 0..255 over the range
    that these map to, so that films of one detector stay comparable. Where the file has neither, 8-bit pixels stay as
    they are, and others are scaled by their own range. MONOCHROME1 and PresentationLUTShape INVERSE are inverted, so
    that air is dark; padding becomes black and counts in no range. Colour becomes RGB. Pixels that are not square are
    resampled.

    Raises:
        UserError: this is no image that can be used; the message is the bare reason, for the caller to put beside the
            file's name. It quotes nothing of the file's that could be a name.
    """
    if not data:
        raise UserError("the file is empty")
    if not is_dicom(data):
        raise UserError("not a DICOM file (no DICM at byte 128, and no data set at its beginning)")
    _load_pydicom()
    try:
        with QUIET, np.errstate(all="ignore"):
            return _decode(data, config)
    except UserError:
        raise
    except Exception as error:  # pydicom and its decoders raise whatever a damaged file leads them to
        raise UserError(f"damaged or cut short ({_reason(error)})") from None


def read_identifiers(file: BinaryIO) -> dict[str, str]:
    """The attributes `IDENTIFIERS` of an open file, those that are there; pixels are not read.

    Raises:
        UserError: not DICOM, or damaged.
    """
    head = file.read(HEAD_BYTES)
    if not is_dicom(head):
        raise UserError("not a DICOM file")
    _load_pydicom()
    from pydicom import dcmread

    try:
        with QUIET:
            if DEFLATED in head:
                _check_deflated(head + file.read())
            file.seek(0)
            header = dcmread(file, force=True, stop_before_pixels=True, specific_tags=list(IDENTIFIERS))
            found = {name: _text(header, name) for name in IDENTIFIERS}
    except UserError:
        raise
    except Exception as error:  # pydicom raises OSError too over what is in a file
        raise UserError(f"damaged or cut short ({_reason(error)})") from None
    return {name: value for name, value in found.items() if value}


@cache
def _load_pydicom() -> None:
    try:
        import pydicom
    except ImportError:
        raise UserError(f"a DICOM file, which needs pydicom: {INSTALL}") from None
    assert pydicom
    logging.getLogger("pydicom").setLevel(
        logging.CRITICAL + 1
    )  # it logs what it warns of, and each decoder's traceback


def _reason(error: Exception) -> str:
    """An exception in a few words, without what stands in quotes, which comes from the file."""
    text = str(error).rpartition("all available plugins:")[2]  # what pydicom says before what its decoder said
    words = " ".join(re.sub(r"'[^']*'|\"[^\"]*\"", "...", text).split())
    return words[:160] or type(error).__name__


def _decode(data: bytes, config: Choices) -> DicomImage:
    from pydicom import dcmread

    _check_deflated(data)
    dataset = dcmread(io.BytesIO(data), force=True)
    _bring_up_functional_groups(dataset)
    _check_header(dataset, config)
    stored, photometric = _stored_pixels(dataset)
    if (stored == stored[0, 0]).all():
        raise UserError(f"every pixel has the same value ({', '.join(map(str, stored[0, 0].ravel()))})")
    pixels = _grey(dataset, stored, config) if photometric in GREY else _colour(dataset, stored, photometric)
    return DicomImage(
        pixels=_square(pixels, _aspect(dataset)),
        patient_id=_text(dataset, "PatientID"),
        image_id=_text(dataset, "SOPInstanceUID") or "",
        study_id=_text(dataset, "StudyInstanceUID"),
    )


def _check_deflated(data: bytes) -> None:
    """A few kilobytes of zeros can unpack to gigabytes, which pydicom would do in one go.

    Raises:
        UserError: more than `MAX_INFLATED` bytes, or damaged.
    """
    if DEFLATED not in data[:HEAD_BYTES]:
        return
    if data[132:138] != b"\2\0\0\0UL":
        raise UserError("a deflated file without the length of its header (0002,0000)")
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    rest, inflated = data[144 + int.from_bytes(data[140:144], "little") :], 0
    while rest and not inflater.eof:
        inflated += len(inflater.decompress(rest, 1 << 24))
        rest = inflater.unconsumed_tail
        if inflated > MAX_INFLATED:
            raise TooManyPixels(f"a deflated file that unpacks to more than {MAX_INFLATED} bytes")


def _text(dataset: "Dataset", name: str) -> str | None:
    """An attribute as stripped text; None where it is absent, empty or unreadable."""
    try:
        return str(dataset.get(name) or "").strip(" \0\n\r\t") or None
    except Exception:  # a damaged value in an attribute that no pixel depends on
        return None


def _bring_up_functional_groups(dataset: "Dataset") -> None:
    """Enhanced objects of one frame keep window, rescale and spacing in nested groups (PS3.3 C.7.6.16)."""
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for macro in ("PixelValueTransformationSequence", "FrameVOILUTSequence", "PixelMeasuresSequence"):
            for group in (dataset.get(groups) or [])[:1]:
                for item in (group.get(macro) or [])[:1]:
                    dataset.update(item)


# ---------------------------------------------------------------------------------------------------------------------
# What is refused before decoding


def _check_header(dataset: "Dataset", config: Choices) -> None:
    """Raises UserError: what the file is, where it isn't one image that can be used."""
    if not dataset.get("PixelData"):
        floats = dataset.get("FloatPixelData") or dataset.get("DoubleFloatPixelData")
        what = "pixels as floating-point numbers" if floats else "no pixel data"
        raise UserError(f"{what} ({_kind(dataset)}): no image, or a file cut short")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise UserError(
            f"multi-frame image of {frames} frames ({_kind(dataset)}): expected one frame; export the frames you want "
            "as single images"
        )
    photometric = _text(dataset, "PhotometricInterpretation")
    if photometric not in (*GREY, *COLOUR):
        raise UserError(
            f"photometric interpretation {_code(photometric)}: expected MONOCHROME1 or 2, RGB, YBR or PALETTE COLOR"
        )
    if config.burned_in == "reject" and (_text(dataset, "BurnedInAnnotation") or "").upper() == "YES":
        raise UserError(
            "its header says that text is burnt into the pixels (BurnedInAnnotation YES): black the text out, or pass "
            "--dicom.burned-in keep if it tells nobody's name"
        )
    _check_geometry(dataset)


def _check_geometry(dataset: "Dataset") -> None:
    height, width = int(dataset.Rows), int(dataset.Columns)
    if height < 1 or width < 1:
        raise UserError(f"{width}x{height} pixels: expected at least one")
    if height * width > MAX_PIXELS:
        raise TooManyPixels(f"{width}x{height} pixels are more than {MAX_PIXELS}")
    allocated, bits = int(dataset.BitsAllocated), int(dataset.BitsStored)
    high = int(dataset.get("HighBit", bits - 1))
    if allocated not in (1, 8, 16):
        raise UserError(f"pixels of {allocated} bits (BitsAllocated): expected 1, 8 or 16")
    if not 1 <= bits <= high + 1 <= allocated:
        raise UserError(f"BitsStored {bits}, HighBit {high} and BitsAllocated {allocated} contradict each other")


def _kind(dataset: "Dataset") -> str:
    """What sort of object this is: name of its SOP class, and modality."""
    from pydicom.uid import UID

    meta = getattr(dataset, "file_meta", None)
    uid = _text(dataset, "SOPClassUID") or (_text(meta, "MediaStorageSOPClassUID") if meta else None) or ""
    name = UID(uid).name
    name = "unknown SOP class" if name == uid else name
    modality = _text(dataset, "Modality")
    return f"{name}, modality {_code(modality)}" if modality else name


def _code(text: str | None) -> str:
    """A value that should be a code word; anything else could be a name, and isn't repeated."""
    if text is None:
        return "missing"
    return text if re.fullmatch(r"[A-Z0-9_ ]{1,16}", text) else "unknown"


# ---------------------------------------------------------------------------------------------------------------------
# Stored pixels


def _stored_pixels(dataset: "Dataset") -> tuple[np.ndarray, str]:
    """Pixels as stored, integers (H, W) or (H, W, 3), and their photometric interpretation, YBR made RGB."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes

    syntax = _transfer_syntax(dataset)
    try:
        decoder = get_decoder(syntax)
        plugins = decoder.available_plugins
    except NotImplementedError:
        raise UserError(f"compressed in a way that can't be read ({_syntax(syntax)}): export it uncompressed") from None
    if not decoder.is_available:
        raise UserError(f"compressed in a way that no installed decoder reads ({_syntax(syntax)}): {INSTALL}")
    if syntax.is_encapsulated:
        _check_compressed(dataset, syntax)
    else:
        _check_length(dataset)
    # Pillow first: it tells what is cut short, and its decoders have seen more hostile files than GDCM's.
    wide = int(dataset.SamplesPerPixel) > 1 and int(dataset.BitsAllocated) > 8
    if "gdcm" in plugins and (wide or "pillow" not in plugins):
        array, photometric = decode_apart(syntax, dataset.PixelData, _description(dataset))
    else:
        plugin = "pillow" if "pillow" in plugins and not wide else ""
        options: dict[str, Any] = {"correct_unused_bits": False, "allow_excess_frames": False}
        array, properties = decoder.as_array(dataset, index=0, decoding_plugin=plugin, **options)
        photometric = str(properties["photometric_interpretation"])
    if syntax not in JPEG2000TransferSyntaxes + JPEGLSTransferSyntaxes:  # those know their own precision
        array = _without_unused_bits(array, dataset)
    return array, photometric


def _description(dataset: "Dataset") -> dict[str, Any]:
    """What pydicom must be told of pixels that come without their data set."""
    samples = int(dataset.SamplesPerPixel)
    return {
        "rows": int(dataset.Rows),
        "columns": int(dataset.Columns),
        "number_of_frames": 1,
        "samples_per_pixel": samples,
        "photometric_interpretation": str(dataset.PhotometricInterpretation),
        "bits_allocated": int(dataset.BitsAllocated),
        "bits_stored": int(dataset.BitsStored),
        "pixel_representation": int(dataset.PixelRepresentation),
        "pixel_keyword": "PixelData",
        "correct_unused_bits": False,
        **({"planar_configuration": int(dataset.get("PlanarConfiguration") or 0)} if samples > 1 else {}),
    }


def _transfer_syntax(dataset: "Dataset") -> "UID":
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    found: UID | None = getattr(dataset, "file_meta", {}).get("TransferSyntaxUID")
    if found:
        return found
    implicit, little = dataset.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _syntax(uid: "UID") -> str:
    if not uid.is_transfer_syntax or uid.is_private:
        return "transfer syntax unknown"
    return f"{uid.name}, transfer syntax {uid}"


def _check_length(dataset: "Dataset") -> None:
    """Rows and Columns that leave more than padding over are wrong; pydicom refuses those that lack some."""
    samples = 2 if dataset.PhotometricInterpretation == "YBR_FULL_422" else int(dataset.SamplesPerPixel)
    bits = int(dataset.Rows) * int(dataset.Columns) * samples * int(dataset.BitsAllocated)
    expected, data = -(-bits // 8), dataset.PixelData
    rest = data[expected + expected % 2 :]
    if rest.strip(rest[:1]):
        raise UserError(
            f"{len(data)} bytes of pixels, expected {expected} for {dataset.Columns}x{dataset.Rows} pixels: its header "
            "is wrong"
        )


def _check_compressed(dataset: "Dataset", syntax: "UID") -> None:
    """Looks at compressed pixels before a decoder written in C does, and mends what a header says of their colours.

    Raises:
        UserError: they have another size than the header says, are cut short, or are made to take hours.
    """
    from pydicom.encaps import get_frame
    from pydicom.uid import JPEG2000TransferSyntaxes, JPEGExtended12Bit, RLELossless

    if syntax == RLELossless:
        return
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    coded = _coded(frame)
    said = (int(dataset.Rows), int(dataset.Columns), int(dataset.SamplesPerPixel))
    if coded[:3] != said:
        raise UserError(
            f"the header says {said[1]}x{said[0]} pixels of {said[2]} samples, what is compressed has "
            f"{coded.width}x{coded.height} of {coded.samples}"
        )
    if syntax == JPEGExtended12Bit and coded.bits > 8:
        raise UserError(
            f"compressed as {syntax.name} of {coded.bits} bits, which no decoder reads: export it uncompressed"
        )
    if coded.bits > int(dataset.BitsAllocated):
        raise UserError(f"compressed pixels of {coded.bits} bits, expected at most {dataset.BitsAllocated}")
    if syntax not in JPEG2000TransferSyntaxes and not frame.rstrip(b"\0\xff").endswith(b"\xff\xd9"):
        raise UserError("compressed pixels without an end: cut short")
    if frame.count(b"\xff\xda") > MAX_SCANS and syntax not in JPEG2000TransferSyntaxes:
        raise UserError(f"a JPEG of more than {MAX_SCANS} scans")
    if coded.subsampled and dataset.PhotometricInterpretation == "RGB":
        dataset.PhotometricInterpretation = "YBR_FULL_422"  # GDCM's own writer calls such pixels RGB


class _Coded(NamedTuple):
    """What a codestream says of itself. subsampled: its components differ in resolution, as only those of YBR do."""

    height: int
    width: int
    samples: int
    bits: int
    subsampled: bool = False


def _coded(frame: bytes) -> _Coded:
    """The header of a JPEG, JPEG-LS or JPEG 2000 codestream.

    Raises:
        UserError: it is none.
    """
    siz = frame[:4096].find(b"\xff\x4f\xff\x51")  # SOC and SIZ, at the start or inside a JP2 file (ISO 15444-1 A.5.1)
    if siz >= 0 and len(frame) > siz + 42:
        right, lower, left, upper = struct.unpack_from(">4I", frame, siz + 8)
        samples, sign_and_bits = struct.unpack_from(">HB", frame, siz + 40)
        return _Coded(lower - upper, right - left, samples, (sign_and_bits & 127) + 1)
    at = 2
    while frame.startswith(b"\xff\xd8") and at + 10 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker in START_OF_FRAME:
            bits, height, width, samples = struct.unpack_from(">BHHB", frame, at + 4)
            factors = frame[at + 11 : at + 10 + 3 * samples : 3]
            return _Coded(height, width, samples, bits, len(set(factors)) > 1)
        at += 1 if marker == 0xFF else 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    raise UserError("compressed pixels that are no JPEG")


START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
"""JPEG's markers with the image's size (ISO 10918-1 table B.1), and JPEG-LS's."""


def _without_unused_bits(array: np.ndarray, dataset: "Dataset") -> np.ndarray:
    """What lies above HighBit (overlays of old files) and below BitsStored is no pixel (PS3.5 8.1.1)."""
    allocated, bits = array.itemsize * 8, int(dataset.BitsStored)
    high = int(dataset.get("HighBit", bits - 1))
    if int(dataset.BitsAllocated) != allocated or bits == allocated:
        return array
    return (array << (allocated - 1 - high)) >> (allocated - bits)  # the sign comes along in signed types


# ---------------------------------------------------------------------------------------------------------------------
# Stored values to what a screen shows


def _grey(dataset: "Dataset", stored: np.ndarray, config: Choices) -> np.ndarray:
    """uint8 (H, W, 1) by a table over all stored values, of which there are at most 65,536."""
    low, high = int(stored.min()), int(stored.max())
    present = np.zeros(high - low + 1, bool)
    strips = [slice(top, top + ROWS) for top in range(0, len(stored), ROWS)]
    for rows in strips:
        present[stored[rows].astype(np.intp) - low] = True
    table = _table(dataset, np.arange(low, high + 1), present, config)
    shown = table[present]
    if shown.min() == shown.max():
        raise UserError(f"every pixel has the same value ({shown[0]}) under its window: look at --dicom.window")
    grey = np.empty(stored.shape, np.uint8)
    for rows in strips:
        grey[rows] = table[stored[rows].astype(np.intp) - low]
    return grey[:, :, None]


def _table(dataset: "Dataset", values: np.ndarray, present: np.ndarray, config: Choices) -> np.ndarray:
    """uint8 (V,) that is shown for each of the stored `values` (V,); `present`: whether it is in the image."""
    padding = _padding(dataset, values)
    shown, bounds = _voi(dataset, _modality(dataset, values), config.window)
    if bounds is None:
        inside = shown[present & ~padding]
        bounds = (inside.min(), inside.max()) if inside.size else (0.0, 0.0)
    if not (np.isfinite(shown).all() and np.isfinite(bounds).all()):
        raise UserError("pixels that are not finite numbers after rescaling")
    extent = bounds[1] - bounds[0]
    grey = np.round(np.clip((shown - bounds[0]) / extent, 0, 1) * 255) if extent else np.zeros(len(shown))
    table = grey.astype(np.uint8)
    inverse = (_text(dataset, "PresentationLUTShape") or "").upper() == "INVERSE"
    if inverse or dataset.PhotometricInterpretation == "MONOCHROME1":  # both say the same of a film (PS3.3 C.11.6.1.2)
        table = 255 - table
    table[padding] = 0
    return table


def _padding(dataset: "Dataset", values: np.ndarray) -> np.ndarray:
    """Which stored values stand for no pixel (PS3.3 C.7.5.1.1.2), bool (V,)."""
    first = dataset.get("PixelPaddingValue")
    if first is None:
        return np.zeros(len(values), bool)
    last = dataset.get("PixelPaddingRangeLimit")
    ends = sorted(_as_stored(int(v), dataset) for v in (first, first if last is None else last))
    return (values >= ends[0]) & (values <= ends[1])


def _as_stored(value: int, dataset: "Dataset") -> int:
    """A 16-bit number read as unsigned, as the pixels have it."""
    return value - 65536 if int(dataset.PixelRepresentation) and value > 32767 else value


def _modality(dataset: "Dataset", values: np.ndarray) -> np.ndarray:
    """Stored values to the modality's own unit (PS3.3 C.11.1): a table, slope and intercept, or as they are."""
    from pydicom.pixels.processing import apply_rescale

    if dataset.get("ModalityLUTSequence"):
        return _look_up(values, dataset.ModalityLUTSequence[0], dataset)[0]
    if dataset.get("RescaleSlope") is None or dataset.get("RescaleIntercept") is None:
        return values.astype(np.float64)
    return np.asarray(apply_rescale(values, dataset), np.float64)


def _voi(dataset: "Dataset", values: np.ndarray, choice: int) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Values through the VOI LUT or window of that number, and what they are mapped between; None: nothing is said.

    Tables are counted before windows, as pydicom prefers them (PS3.3 C.11.2).
    """
    from pydicom.pixels.processing import apply_windowing

    tables = dataset.get("VOILUTSequence") or []
    windows = min(_count(dataset, "WindowCenter"), _count(dataset, "WindowWidth"))
    if not len(tables) + windows:
        if choice:
            raise UserError(f"no window {choice} (--dicom.window), since it has none at all")
        return values, _full_range(dataset)
    if not 0 <= choice < len(tables) + windows:
        raise UserError(f"no window {choice} among {len(tables) + windows}: expected --dicom.window from 0 on")
    if choice < len(tables):
        shown, top = _look_up(values, tables[choice], dataset)
        return shown, (0.0, top)
    index = choice - len(tables)
    low, high = apply_windowing(np.array([-1e30, 1e30]), dataset, index)
    return np.asarray(apply_windowing(values, dataset, index), np.float64), (float(low), float(high))


def _count(dataset: "Dataset", name: str) -> int:
    element = dataset.get_item(name)
    return 0 if element is None or dataset.get(name) in (None, "") else int(dataset[name].VM)


def _full_range(dataset: "Dataset") -> tuple[float, float] | None:
    """8-bit pixels that no attribute speaks of are what an 8-bit PNG would hold, and are left as such a PNG is."""
    transformed = any(dataset.get(name) for name in ("ModalityLUTSequence", "RescaleSlope"))
    plain = int(dataset.BitsStored) == 8 and not int(dataset.PixelRepresentation)
    identity = not transformed or (
        not dataset.get("ModalityLUTSequence") and dataset.RescaleSlope == 1 and not dataset.get("RescaleIntercept")
    )
    return (0.0, 255.0) if plain and identity else None


def _look_up(values: np.ndarray, item: "Dataset", dataset: "Dataset") -> tuple[np.ndarray, float]:
    """Values through a modality or VOI LUT (PS3.3 C.11.1.1.1), float64 (V,), and the highest that its depth allows.

    Not pydicom's: that keeps indices in the type of the table's entries, and wraps in an 8-bit table of 4,096.
    """
    number, first, bits = (int(v) for v in item.LUTDescriptor)
    number = number or 65536
    if first > 32767 and values.min() < 0:  # the descriptor was read as unsigned
        first -= 65536
    table = _entries(item, number, dataset)[:number]
    if not len(table) or not 8 <= bits <= 16:
        raise UserError(f"a lookup table of {len(table)} entries of {bits} bits: expected some of 8 to 16 bits")
    index = np.clip(np.round(values) - first, 0, len(table) - 1).astype(np.intp)
    return table[index].astype(np.float64), float(2**bits - 1)


def _entries(item: "Dataset", number: int, dataset: "Dataset") -> np.ndarray:
    data = item.LUTData
    if not isinstance(data, bytes):
        return np.atleast_1d(np.asarray(data, dtype=np.int64)) & 0xFFFF
    if len(data) in (number, number + number % 2):  # 8-bit entries, two in a word
        return np.frombuffer(data, np.uint8)
    order = "<" if _transfer_syntax(dataset).is_little_endian else ">"
    return np.frombuffer(data[: len(data) // 2 * 2], f"{order}u2")


def _colour(dataset: "Dataset", stored: np.ndarray, photometric: str) -> np.ndarray:
    """uint8 (H, W, 3)."""
    bits = int(dataset.BitsStored)
    if photometric == "PALETTE COLOR":
        stored, bits = _painted(dataset, stored)
    elif photometric != "RGB":
        raise UserError(f"colours that can't be made RGB ({_code(photometric)})")
    if stored.ndim != 3 or stored.shape[2] != 3:
        raise UserError(f"colour of {stored.shape[2] if stored.ndim == 3 else 1} channels: expected 3")
    if stored.dtype == np.uint8 and bits == 8:
        return np.ascontiguousarray(stored)
    colour = np.empty(stored.shape, np.uint8)
    for top in range(0, len(stored), ROWS):
        rows = slice(top, top + ROWS)
        colour[rows] = np.round(np.clip(stored[rows].astype(np.float64) / (2**bits - 1), 0, 1) * 255)
    return colour


def _painted(dataset: "Dataset", stored: np.ndarray) -> tuple[np.ndarray, int]:
    """Stored values through the file's palette (PS3.3 C.7.6.3.1.5), unsigned (H, W, 3), and the bits of its entries."""
    from pydicom.pixels.processing import apply_color_lut

    number, first, bits = (int(v) for v in dataset.RedPaletteColorLookupTableDescriptor)
    if bits == 8 and min(int(stored.max()) - first, (number or 65536) - 1) > 255:
        raise UserError(f"a palette of {number} colours of 8 bits: expected at most 256")  # pydicom's indices wrap
    painted = apply_color_lut(stored, dataset)
    return painted[:, :, :3], painted.itemsize * 8


# ---------------------------------------------------------------------------------------------------------------------
# Geometry


def _aspect(dataset: "Dataset") -> float:
    """Height of a pixel in units of its width.

    Raises:
        UserError: more than `MAX_ASPECT` or as little as its inverse.
    """
    for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"):
        sides = dataset.get(name)
        if sides and len(sides) == 2 and min(float(side) for side in sides) > 0:
            aspect = float(sides[0]) / float(sides[1])
            if not 1 / MAX_ASPECT <= aspect <= MAX_ASPECT:
                raise UserError(f"pixels {aspect:.3g} times as high as wide ({name}): its header is wrong")
            return aspect
    return 1.0


def _square(pixels: np.ndarray, aspect: float) -> np.ndarray:
    """Resampled to square pixels along the coarser axis, so that nothing is lost; antialiased (Lanczos)."""
    if abs(aspect - 1) < SQUARE:
        return pixels
    height, width = pixels.shape[:2]
    size = (width, round(height * aspect)) if aspect > 1 else (round(width / aspect), height)
    if size[0] * size[1] > MAX_PIXELS:
        raise TooManyPixels(f"{size[0]}x{size[1]} pixels, once they are square, are more than {MAX_PIXELS}")
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS)).reshape(size[1], size[0], pixels.shape[2])
