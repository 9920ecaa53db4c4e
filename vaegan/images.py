"""Pixels as uint8 arrays, without PyTorch: image files in and out, sizes, grids, and hashes that find copies."""

import hashlib
import io
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import imagehash
import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from cluster.errors import UserError

SCALED_MODES = ("I;16", "I;16B", "I;16L", "I", "F")
"""Pillow's modes of one channel with more than 256 values."""
GREY_MODES = ("1", "L", "LA", *SCALED_MODES)
MAX_PIXELS = 100_000_000
"""Larger images are refused: a few kilobytes of PNG can unpack to gigabytes."""
MAX_SCANS = 64
"""Of a JPEG. Encoders write up to 18; a megabyte can hold thousands, each of which costs as much as a whole image."""
MAX_PARTS = 30_000
"""Strips or tiles of a TIFF, usually of several rows each; Pillow takes minutes over as many as a file can name."""
OVERSIZE = 3
"""How many times larger than asked for a JPEG is decoded at least. Measured on 60 chest films: 3 moves a pixel by 2
grey levels at most and .15 in the mean against decoding all of it, at 1.5 (256 to 32 px) to 4 times (1024 to 64 px) its
speed; 2 moves some by 12. Those films were square: of another the centred square may be cut up to half a reduced pixel
beside the centre."""
ROWS = 256
"""Rows that are scaled at once, which bounds the memory that their floats take."""


Aspect = Literal["crop", "pad", "squash"]


class TooManyPixels(UserError):
    """An image larger than what is taken."""


def decode(
    data: bytes,
    *,
    constant: bool = False,
    formats: tuple[str, ...] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Any image file that Pillow reads to uint8 (H, W, C), C = 1 for grey and 3 for everything else.

    16-bit and float images are scaled by their own range: the darkest pixel becomes 0, the brightest 255.

    Args:
        constant: whether an image of one value is taken. A film of one value is no film; a generator's image of one
            value must be measured.
        formats: Pillow's names of the file formats that are taken, all of them by default. What strangers send should
            not reach every decoder that Pillow has.
        max_pixels: larger images are refused before their pixels are decoded.

    Raises:
        UserError: the bytes are empty, cut short, no image, too large, not finite or (unless `constant`) of one value;
            the message is the bare reason, for the caller to put beside the file's name.
    """
    with _opened(data, formats, max_pixels) as image:
        image.load()  # opening reads only the header; a truncated file fails here
        array = _grey_or_rgb(image)
    return check_pixels(array, constant=constant)


def decode_for(data: bytes, size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """As `decode`, for an image that will be made `size` pixels wide and high; and its own (height, width).

    Of a JPEG that is much larger only as many frequencies are decoded as leave the shorter side `OVERSIZE` times the
    size or longer: libjpeg's scales 1/2, 1/4, 1/8, which cost that much less. Resampling then does the rest.

    Raises:
        UserError: as `decode`.
    """
    with _opened(data) as image:
        shape = (image.height, image.width)
        least = OVERSIZE * size / min(shape)
        if least <= 0.5:
            image.draft(None, (round(image.width * least), round(image.height * least)))
        image.load()
        array = _grey_or_rgb(image)
    return check_pixels(array), shape


def inspect(data: bytes) -> tuple[int, int, int]:
    """(height, width, channels) that `decode` would give, at a fraction of its time.

    Looks for what is cut short or damaged as far as that is cheap: checksums of a PNG, an eighth of the resolution of
    a JPEG; other formats are decoded.

    Raises:
        UserError: as `decode`.
    """
    with _opened(data) as image:
        shape = (image.height, image.width, 1 if image.mode in GREY_MODES else 3)
        if image.format == "PNG":
            image.verify()
        else:
            image.draft(image.mode, (image.width // 8, image.height // 8))  # means something to JPEG alone
            image.load()
    return shape


@contextmanager
def _opened(data: bytes, formats: tuple[str, ...] | None = None, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Pillow's image, whose complaints become sentences, those while it is in use too."""
    if not data:
        raise UserError("the file is empty")
    try:
        with QUIET, Image.open(_bounded(data), formats=formats) as image:
            if image.width * image.height > max_pixels:
                raise TooManyPixels(f"{image.width}x{image.height} pixels are more than {max_pixels}")
            yield image
    except UnidentifiedImageError:
        raise UserError("not an image in a format that can be read") from None
    except Image.DecompressionBombError:
        raise TooManyPixels(f"more than {max_pixels} pixels") from None
    except UserError:
        raise
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to: TypeError, struct.error
        raise UserError(f"damaged or cut short ({' '.join(str(error).split())[:200]})") from None


def _bounded(data: bytes) -> io.BytesIO:
    """An image file whose decoding takes a time that its pixels explain.

    Raises:
        UserError: it is made to take minutes or hours.
    """
    scans = data.count(b"\xff\xda") if data.startswith(b"\xff\xd8") else 0
    if scans > MAX_SCANS:
        raise UserError(f"a JPEG of {scans} scans, expected at most {MAX_SCANS}")
    if data.startswith(tuple(TiffImagePlugin.PREFIXES)):
        directory = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if 43 in data[2:4] else 8])
        file = io.BytesIO(data)
        file.seek(directory.next)
        directory.load(file)
        parts = max(len(directory.get(tag, ())) for tag in (TiffImagePlugin.STRIPOFFSETS, TiffImagePlugin.TILEOFFSETS))
        if parts > MAX_PARTS:
            raise UserError(f"a TIFF of {parts} strips or tiles, expected at most {MAX_PARTS}")
    if data.startswith(b"BM") and data[14:15] > b"\x0c" and data[30:31] in (b"\1", b"\2"):  # \x0c: OS/2's own header
        raise UserError("a run-length encoded BMP, which takes too long to decode; expected one without compression")
    return io.BytesIO(data)


def check_pixels(array: np.ndarray, *, constant: bool = False) -> np.ndarray:
    """Any numeric (H, W) or (H, W, C) to uint8 (H, W, C); see `decode` for the scaling and what is refused."""
    if not np.isfinite(array).all():
        raise UserError("pixels that are not finite numbers (NaN or infinity)")
    low, high = array.min(), array.max()
    if low == high and not constant:
        raise UserError(f"every pixel has the same value ({low:g})")
    if array.dtype != np.uint8:
        scale = 255 / (float(high) - float(low)) if high > low else 0.0
        grey = np.empty(array.shape, np.uint8)
        for top in range(0, len(array), ROWS):
            rows = slice(top, top + ROWS)
            grey[rows] = np.round((array[rows].astype(np.float64) - low) * scale)
        array = grey
    return array[:, :, None] if array.ndim == 2 else array


def _grey_or_rgb(image: Image.Image) -> np.ndarray:
    if image.mode in SCALED_MODES:
        return np.asarray(image)
    return np.asarray(image.convert("L" if image.mode in GREY_MODES else "RGB"))


class _Quiet:
    """Warnings are dropped while any thread is inside. `warnings.catch_warnings` in threads may leave them off."""

    def __init__(self) -> None:
        self.inside = 0
        self.lock = threading.Lock()
        self.caught = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                self.caught = warnings.catch_warnings()
                self.caught.__enter__()
                warnings.simplefilter("ignore")

    def __exit__(self, *_error: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                self.caught.__exit__(None, None, None)


QUIET = _Quiet()


def resize(pixels: np.ndarray, size: int, channels: int, aspect: Aspect = "crop") -> np.ndarray:
    """One uint8 (H, W, C) image to (size, size, channels), by antialiased resampling.

    Lanczos with a support that grows with the reduction, so that thin ribs don't alias; grey from colour by the
    ITU-R 601 luma, colour from grey by repeating the channel.

    Args:
        aspect: what becomes of an image that isn't square: "crop" takes the largest centred square, "pad" all of it
            with black beside it, "squash" all of it without regard to its proportions.
    """
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    image = image.convert("L" if channels == 1 else "RGB")
    if aspect == "crop":
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))  # resize's own `box` lets in what lies beside it
    width, height = size, size
    if aspect == "pad":
        width, height = (max(1, round(size * length / max(image.size))) for length in image.size)
    array = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
    if (height, width) != (size, size):
        padded = np.zeros((size, size, *array.shape[2:]), dtype=np.uint8)
        top, left = (size - height) // 2, (size - width) // 2
        padded[top : top + height, left : left + width] = array
        array = padded
    return array[:, :, None] if channels == 1 else array


def reduced_size(height: int, width: int, max_side: int) -> tuple[int, int]:
    """(height, width) in the same proportion with no side above `max_side`."""
    scale = min(1.0, max_side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def reduced(pixels: np.ndarray, max_side: int) -> np.ndarray:
    """One uint8 (H, W, C) image with no side above `max_side`: antialiased, the whole image."""
    height, width = reduced_size(pixels.shape[0], pixels.shape[1], max_side)
    if (height, width) == pixels.shape[:2]:
        return pixels
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    small = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
    return small[:, :, None] if small.ndim == 2 else small


def encode_png(pixels: np.ndarray, text: Mapping[str, str] | None = None, level: int = 1) -> bytes:
    """One uint8 (H, W, C) image as PNG bytes.

    Args:
        text: keyword to value, written as iTXt chunks in the order given.
        level: zlib level; 1 costs a quarter of 6's time and a few per cent more bytes.
    """
    chunks = PngImagePlugin.PngInfo()
    for keyword, value in (text or {}).items():
        chunks.add_itxt(keyword, value)
    buffer = io.BytesIO()
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    image.save(buffer, format="PNG", compress_level=level, pnginfo=chunks)
    return buffer.getvalue()


def grid(pixels: np.ndarray, columns: int, pad: int = 2) -> np.ndarray:
    """Images (N, H, W, C) row by row on one white sheet (H', W', C), `pad` pixels between them."""
    count, height, width, channels = pixels.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + pad) + pad, columns * (width + pad) + pad, channels), 255, dtype=np.uint8)
    for i, image in enumerate(pixels):
        top, left = pad + i // columns * (height + pad), pad + i % columns * (width + pad)
        sheet[top : top + height, left : left + width] = image
    return sheet


def pixel_hash(pixels: np.ndarray) -> str:
    """SHA-256 of an image's shape and bytes: equal for exact copies only."""
    header = "x".join(map(str, pixels.shape)).encode()
    return hashlib.sha256(header + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def perceptual_hash(pixels: np.ndarray) -> int:
    """64-bit DCT hash of an image (H, W, C): a small Hamming distance between two suggests, not proves, a near copy."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return int(str(imagehash.phash(image)), 16)
