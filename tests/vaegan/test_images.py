import io

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.errors import UserError
from vaegan.images import decode, encode_png, grid, perceptual_hash, pixel_hash, resize
from vaegan.tensors import to_pixels, to_tensor


def file(array: np.ndarray, kind: str = "PNG", **settings) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **settings)
    return buffer.getvalue()


def ramp(height: int, width: int) -> np.ndarray:
    return np.linspace(0, 255, height * width).reshape(height, width).astype(np.uint8)


def test_every_grey_level_survives_the_way_to_a_tensor_and_back():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    x = to_tensor(levels)
    assert (x.min(), x.max()) == (-1, 1)
    assert np.array_equal(to_pixels(x), levels)


def test_what_leaves_the_range_is_clipped_not_wrapped():
    assert to_pixels(torch.tensor([[[[-1.5, 1.5]]]])).ravel().tolist() == [0, 255]


def test_colour_keeps_its_channels_in_order():
    colour = np.zeros((1, 2, 2, 3), dtype=np.uint8)
    colour[..., 0] = 255
    x = to_tensor(colour)
    assert x.shape == (1, 3, 2, 2)
    assert x[0, 0].min() == 1
    assert np.array_equal(to_pixels(x), colour)


def test_png_is_lossless_and_carries_its_text():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 1), dtype=np.uint8)
    data = encode_png(pixels, {"Comment": "synthetic µ"})
    assert np.array_equal(decode(data), pixels)
    assert Image.open(io.BytesIO(data)).text["Comment"] == "synthetic µ"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello, this is text", "not an image"),
        (file(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8), "JPEG")[:900], "cut short"),
        (file(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8))[:900], "cut short"),
        (file(np.full((8, 8), 7, dtype=np.uint8)), r"same value \(7\)"),
    ],
)
def test_bytes_that_are_no_usable_image_are_refused_with_the_reason(data, reason):
    with pytest.raises(UserError, match=reason):
        decode(data)


def test_pixels_that_are_not_numbers_are_refused():
    array = np.ones((4, 4), dtype=np.float32)
    array[0, 0] = np.nan
    with pytest.raises(UserError, match="NaN"):
        decode(file(array, "TIFF"))


def test_sixteen_bits_are_scaled_by_their_own_range():
    deep = (ramp(16, 16).astype(np.uint16) + 1000) * 10
    found = decode(file(deep))
    assert (found.min(), found.max()) == (0, 255)
    assert np.abs(found[:, :, 0].astype(int) - ramp(16, 16)).max() <= 1


def test_palette_and_transparency_become_colour_or_grey():
    assert decode(file(np.dstack([ramp(8, 8)] * 4))).shape == (8, 8, 3)
    assert decode(file(ramp(8, 8) > 99)).shape == (8, 8, 1)


def test_resizing_takes_the_largest_centred_square():
    wide = np.zeros((10, 30, 1), dtype=np.uint8)
    wide[:, 10:20] = 200
    assert (resize(wide, 5, 1) == 200).all()


def test_resizing_is_antialiased():
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (128, 64))[:, :, None]
    small = resize(stripes, 32, 1)
    assert np.abs(small[:, 2:-2].astype(int) - 127).max() < 12


def test_grids_keep_every_image_in_reading_order():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 1), dtype=np.uint8)
    sheet = grid(images, columns=3, pad=1)
    assert sheet.shape == (2 * 3 + 1, 3 * 4 + 1, 1)
    assert sheet[1, 5, 0] == 1
    assert sheet[4, 1, 0] == 3


def test_pixel_hashes_differ_with_a_single_bit_and_with_the_shape():
    a = ramp(4, 6)[:, :, None]
    b = a.copy()
    b[0, 0] ^= 1
    assert len({pixel_hash(a), pixel_hash(b), pixel_hash(a.reshape(6, 4, 1))}) == 3


def test_a_perceptual_hash_survives_compression_and_not_another_picture():
    rng = np.random.default_rng(0)
    smooth = np.asarray(Image.fromarray(rng.integers(0, 255, (6, 6), dtype=np.uint8)).resize((64, 64)))
    other = np.asarray(Image.fromarray(rng.integers(0, 255, (6, 6), dtype=np.uint8)).resize((64, 64)))
    compressed = decode(file(smooth, "JPEG", quality=60))

    def distance(a: np.ndarray, b: np.ndarray) -> int:
        return (perceptual_hash(a) ^ perceptual_hash(b)).bit_count()

    assert distance(smooth[:, :, None], compressed) <= 4
    assert distance(smooth[:, :, None], other[:, :, None]) > 12
