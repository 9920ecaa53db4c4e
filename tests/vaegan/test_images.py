import io

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.errors import UserError
from vaegan.images import OVERSIZE, decode, decode_for, encode_png, grid, perceptual_hash, pixel_hash, resize
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


def disc(height: int, width: int) -> np.ndarray:
    """A white disc of radius 0.4 of the shorter side, in the middle, (H, W, 1)."""
    y, x = np.mgrid[:height, :width]
    inside = np.hypot(y - (height - 1) / 2, x - (width - 1) / 2) <= 0.4 * min(height, width)
    return (inside * 255).astype(np.uint8)[..., None]


@pytest.mark.parametrize("shape", [(120, 200), (200, 120), (90, 300)])
def test_padding_keeps_all_of_an_image_in_its_proportions_between_black_bars(shape):
    small = resize(disc(*shape), 96, 1, "pad")[..., 0] > 127
    scale = 96 / max(shape)
    rows, columns = np.flatnonzero(small.any(axis=1)), np.flatnonzero(small.any(axis=0))
    assert len(rows) == pytest.approx(0.8 * min(shape) * scale, abs=1.5)  # a circle stays one
    assert len(columns) == pytest.approx(len(rows), abs=1)
    bar = round((96 - min(shape) * scale) / 2) - 1
    padded = resize(np.full((*shape, 1), 200, np.uint8), 96, 1, "pad")[..., 0]
    across = padded if shape[0] < shape[1] else padded.T
    assert (across[:bar] == 0).all()
    assert (across[-bar:] == 0).all()
    assert (across[bar + 2 : -bar - 2] == 200).all()


@pytest.mark.parametrize("shape", [(120, 200), (201, 120), (7, 3)])
def test_each_aspect_gives_the_size_asked_for_and_cropping_is_what_pillow_gives_of_the_centre(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 1), dtype=np.uint8)
    for aspect in ("crop", "pad", "squash"):
        assert resize(pixels, 16, 1, aspect).shape == (16, 16, 1)
        assert resize(pixels, 16, 3, aspect).shape == (16, 16, 3)
    side = min(shape)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    centre = Image.fromarray(pixels[top : top + side, left : left + side, 0])
    expected = np.asarray(centre.resize((16, 16), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(resize(pixels, 16, 1, "crop")[..., 0], expected)
    squashed = Image.fromarray(pixels[..., 0]).resize((16, 16), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(resize(pixels, 16, 1, "squash")[..., 0], np.asarray(squashed))


def test_square_images_of_the_size_asked_for_stay_as_they_are_whatever_the_aspect():
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 1), dtype=np.uint8)
    for aspect in ("crop", "pad", "squash"):
        np.testing.assert_array_equal(resize(pixels, 24, 1, aspect), pixels)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_lossless_files_are_decoded_whole_whatever_size_is_asked_for(kind):
    pixels = ramp(200, 150)
    found, shape = decode_for(file(pixels, kind), 8)
    np.testing.assert_array_equal(found[..., 0], pixels)
    assert shape == (200, 150)


@pytest.mark.parametrize("size", [8, 32, 64, 100])
def test_a_jpeg_read_at_a_fraction_of_its_size_ends_within_a_few_grey_levels_of_reading_all_of_it(size):
    rng = np.random.default_rng(0)
    smooth = np.asarray(Image.fromarray(rng.integers(0, 256, (8, 10), dtype=np.uint8)).resize((960, 800)))
    data = file(smooth, "JPEG", quality=95)
    found, shape = decode_for(data, size)
    assert shape == (800, 960)  # what is cropped away is a whole number of an eighth's pixels
    assert min(found.shape[:2]) >= min(800, OVERSIZE * size)
    difference = resize(found, size, 1).astype(int) - resize(decode(data), size, 1)
    assert np.abs(difference).mean() < 2
    assert np.abs(difference).max() <= 12
