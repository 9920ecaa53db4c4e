"""Decoding against closed forms of the standard: expected values are computed here, from PS3.3, never by pydicom."""

import io
import logging
import subprocess
import sys
import warnings
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.errors import UserError
from vaegan.dicom import decode_dicom, has_preamble, is_dicom, read_identifiers
from vaegan.images import MAX_PIXELS
from vaegan.importers.base import DicomConfig

pydicom = pytest.importorskip("pydicom")
from pydicom import uid  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402

SURNAME = "MUSTERMANN"
CONFIG = DicomConfig()


def ramp(bits=12, signed=False, size=(20, 30)):
    """Stored values that rise from the least to the greatest that fit."""
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    values = np.linspace(low, high, size[0] * size[1]).round()
    return values.reshape(size).astype(("i" if signed else "u") + ("1" if bits <= 8 else "2"))


def colours(size=(20, 30)):
    """Three smooth ramps in different directions, uint8 (H, W, 3)."""
    red = np.linspace(0, 255, size[1])[None, :].repeat(size[0], 0)
    green = np.linspace(0, 255, size[0])[:, None].repeat(size[1], 1)
    return np.stack([red, green, 255 - red], axis=-1).astype(np.uint8)


def film(stored, *, bits=None, syntax=uid.ExplicitVRLittleEndian, **attributes):
    """A data set that holds these pixels; `None` takes an attribute out."""
    data = pydicom.Dataset()
    data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    data.SOPInstanceUID, data.StudyInstanceUID, data.PatientID = "1.2.3.4", "1.2.3", f"{SURNAME}^7"
    data.Modality = "CR"
    data.Rows, data.Columns = stored.shape[:2]
    data.SamplesPerPixel = 1 if stored.ndim == 2 else stored.shape[2]
    data.PhotometricInterpretation = "MONOCHROME2" if stored.ndim == 2 else "RGB"
    if stored.ndim == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = stored.itemsize * 8
    data.BitsStored = bits or data.BitsAllocated
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(stored.dtype.kind == "i")
    order = "<" if syntax.is_little_endian else ">"
    pixels = stored.astype(stored.dtype.newbyteorder(order)).tobytes()
    data.add_new("PixelData", "OW" if stored.itemsize > 1 else "OB", pixels + b"\0" * (len(pixels) % 2))
    for name, value in attributes.items():
        if value is None:
            delattr(data, name)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pydicom warns of values that no standard allows
                setattr(data, name, value)
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    return data


def written(data):
    """The file's bytes."""
    syntax = data.file_meta.TransferSyntaxUID
    if "PixelData" in data:
        data["PixelData"].is_undefined_length = syntax.is_encapsulated
    with warnings.catch_warnings(), io.BytesIO() as buffer:
        warnings.simplefilter("ignore")
        data.save_as(buffer, enforce_file_format=True)
        return buffer.getvalue()


def decoded(data, **config):
    return decode_dicom(written(data) if isinstance(data, pydicom.Dataset) else data, DicomConfig(**config))


def grey(data, **config):
    pixels = decoded(data, **config).pixels
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 1
    return pixels[:, :, 0]


def linear(x, center, width):
    """PS3.3 C.11.2.1.2.1, over the range 0 to 255."""
    y = ((x.astype(float) - (center - 0.5)) / (width - 1) + 0.5) * 255
    y[x <= center - 0.5 - (width - 1) / 2] = 0
    y[x > center - 0.5 + (width - 1) / 2] = 255
    return y.round()


def own_range(x):
    return ((x.astype(float) - x.min()) / (float(x.max()) - x.min()) * 255).round()


# ---------------------------------------------------------------------------------------------------- windows and LUTs


@pytest.mark.parametrize(
    ("bits", "signed"), [(10, False), (12, False), (14, False), (16, False), (12, True), (16, True)]
)
def test_a_window_is_the_standards_formula(bits, signed):
    stored = ramp(bits, signed)
    center = 40.0 if signed else 2.0 ** (bits - 1) + 3
    data = film(stored, bits=bits, WindowCenter=center, WindowWidth=300.0)
    np.testing.assert_array_equal(grey(data), linear(stored, center, 300))


def test_a_window_applies_to_rescaled_values_and_not_to_the_images_own_range():
    stored = ramp(12)[:10]  # only the lower half
    data = film(stored, bits=12, RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=3000, WindowWidth=8000)
    np.testing.assert_array_equal(grey(data), linear(stored * 2.0 - 1024, 3000, 8000))
    assert grey(data).max() < 200


def test_a_negative_slope_turns_dark_into_light():
    stored = ramp(12)
    data = film(stored, bits=12, RescaleSlope=-1, RescaleIntercept=4095, WindowCenter=2048, WindowWidth=4096)
    np.testing.assert_array_equal(grey(data), linear(4095.0 - stored, 2048, 4096))
    del data.WindowCenter
    np.testing.assert_array_equal(grey(data), own_range(4095 - stored))


def test_linear_exact_and_sigmoid_windows_are_the_standards_formulas():
    stored = ramp(12)
    data = film(stored, bits=12, WindowCenter=2000, WindowWidth=1000, VOILUTFunction="LINEAR_EXACT")
    np.testing.assert_array_equal(
        grey(data), (((stored - 2000.0) / 1000 + 0.5).clip(0, 1) * 255).round()
    )  # C.11.2.1.3.2
    data.VOILUTFunction = "SIGMOID"
    np.testing.assert_array_equal(
        grey(data), (255 / (1 + np.exp(-4 * (stored - 2000.0) / 1000))).round()
    )  # C.11.2.1.3.1


def test_one_of_several_windows_is_chosen_and_others_do_not_exist():
    stored = ramp(12)
    data = film(stored, bits=12, WindowCenter=[1000, 3000], WindowWidth=[500, 900])
    np.testing.assert_array_equal(grey(data), linear(stored, 1000, 500))
    np.testing.assert_array_equal(grey(data, window=1), linear(stored, 3000, 900))
    for window in (2, -1):
        with pytest.raises(UserError, match=f"no window {window} among 2"):
            decoded(data, window=window)
    with pytest.raises(UserError, match=r"no window 1 .*none at all"):
        decoded(film(stored, bits=12), window=1)


def lut(entries, first, bits):
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries) % 65536, first, bits])
    item.add_new("LUTData", "OW", np.asarray(entries, "<u2").tobytes())
    return pydicom.Sequence([item])


def test_a_voi_lut_is_looked_up_and_comes_before_windows():
    stored = ramp(12)
    curve = (255 * np.linspace(0, 1, 4096) ** 2).astype(int)
    data = film(stored, bits=12, VOILUTSequence=lut(curve, 0, 8), WindowCenter=1000, WindowWidth=100)
    np.testing.assert_array_equal(grey(data), curve[stored])
    np.testing.assert_array_equal(grey(data, window=1), linear(stored, 1000, 100))


def test_values_outside_a_lut_take_its_ends():
    stored = ramp(12)
    entries = np.array([100, 200, 300, 1023])
    data = film(stored, bits=12, VOILUTSequence=lut(entries, 1000, 10))
    expected = entries[np.clip(stored.astype(int) - 1000, 0, 3)] / 1023 * 255
    np.testing.assert_array_equal(grey(data), expected.round())


def test_a_modality_lut_comes_before_the_window():
    stored = ramp(10)
    entries = np.arange(1024)[::-1] * 3
    data = film(stored, bits=10, ModalityLUTSequence=lut(entries, 0, 16), WindowCenter=1500, WindowWidth=2000)
    np.testing.assert_array_equal(grey(data), linear(entries[stored], 1500, 2000))


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_without_window_or_lut_more_than_8_bits_are_scaled_by_their_own_range(bits, signed):
    stored = ramp(bits, signed)[4:13]
    np.testing.assert_array_equal(grey(film(stored, bits=bits)), own_range(stored))


def test_8_bits_without_a_window_stay_as_they_are_like_those_of_a_png():
    stored = ramp(8)[4:13]
    np.testing.assert_array_equal(grey(film(stored)), stored)
    identity = film(stored, RescaleSlope=1, RescaleIntercept=0)
    np.testing.assert_array_equal(grey(identity), stored)


# ----------------------------------------------------------------------------------------------- inversion and padding


def test_monochrome1_is_inverted_so_that_air_is_dark_and_so_is_an_inverse_presentation_but_not_twice():
    stored = ramp(12)
    plain = dict(bits=12, WindowCenter=2048, WindowWidth=4096)
    upright = grey(film(stored, **plain))
    for attributes in (
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"PresentationLUTShape": "INVERSE"},
        {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"},
    ):
        np.testing.assert_array_equal(grey(film(stored, **plain, **attributes)), 255 - upright)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_counts_in_no_range(photometric):
    inner = ramp(10) + np.uint16(100)
    stored = np.pad(inner, 3, constant_values=4000)
    data = film(stored, bits=12, PixelPaddingValue=4000, PhotometricInterpretation=photometric)
    result = grey(data)
    expected = own_range(inner)
    np.testing.assert_array_equal(result[3:-3, 3:-3], expected if photometric == "MONOCHROME2" else 255 - expected)
    assert not result[:3].any()
    assert not result[:, -3:].any()


def test_a_range_of_padding_may_be_negative():
    inner = ramp(10).astype(np.int16)
    stored = np.pad(inner, 2, constant_values=-2000)
    stored[0] = -1990
    data = film(stored)
    data.add_new("PixelPaddingValue", "SS", -2000)
    data.add_new("PixelPaddingRangeLimit", "SS", -1980)
    np.testing.assert_array_equal(grey(data)[2:-2, 2:-2], own_range(inner))
    assert not grey(data)[:2].any()


def test_overlays_in_the_bits_above_the_stored_ones_are_no_pixels():
    stored = ramp(12)
    noise = np.random.default_rng(0).integers(0, 16, stored.shape, dtype=np.uint16) << 12
    np.testing.assert_array_equal(grey(film(stored | noise, bits=12)), own_range(stored))
    high = film((stored << 4) | 5, bits=12, HighBit=15)
    np.testing.assert_array_equal(grey(high), own_range(stored))
    signed = ramp(12, signed=True)
    stray = (signed & 0x0FFF) | noise.astype(np.int16)
    np.testing.assert_array_equal(grey(film(stray, bits=12)), own_range(signed))


def test_single_bits_become_black_and_white():
    mask = np.random.default_rng(0).integers(0, 2, (16, 24), dtype=np.uint8)
    data = film(mask, BitsAllocated=1, BitsStored=1, HighBit=0)
    data.PixelData = np.packbits(mask, bitorder="little").tobytes()
    np.testing.assert_array_equal(grey(data), mask * 255)


# -------------------------------------------------------------------------------------------------------------- colour


def ybr(rgb):
    """PS3.3 C.7.6.3.1.2: YBR_FULL."""
    matrix = np.array([[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]])
    return (rgb @ matrix.T + [0, 128, 128]).round().clip(0, 255).astype(np.uint8)


def test_colour_by_pixel_and_by_plane_and_as_ybr_is_rgb():
    rgb = colours()
    np.testing.assert_array_equal(decoded(film(rgb)).pixels, rgb)
    planes = film(rgb, PlanarConfiguration=1)
    planes.PixelData = rgb.transpose(2, 0, 1).tobytes()
    np.testing.assert_array_equal(decoded(planes).pixels, rgb)
    full = film(ybr(rgb), PhotometricInterpretation="YBR_FULL")
    np.testing.assert_allclose(decoded(full).pixels.astype(int), rgb, atol=2)


def test_chroma_of_half_the_width_is_spread_over_two_pixels():
    rgb = colours().repeat(2, axis=1)  # neighbours are equal, so nothing is lost
    y = ybr(rgb)
    pairs = np.stack([y[:, ::2, 0], y[:, 1::2, 0], y[:, ::2, 1], y[:, ::2, 2]], axis=-1)
    data = film(y, PhotometricInterpretation="YBR_FULL_422")
    data.PixelData = pairs.tobytes()
    np.testing.assert_allclose(decoded(data).pixels.astype(int), rgb, atol=2)


def test_colour_of_16_bits_is_scaled_by_its_full_range():
    rgb = colours().astype(np.uint16) * 16
    np.testing.assert_array_equal(decoded(film(rgb, bits=12)).pixels, (rgb / 4095 * 255).round())


@pytest.mark.parametrize("bits", [8, 16])
def test_a_palette_is_looked_up(bits):
    stored = ramp(8)
    entries = np.random.default_rng(0).integers(0, 256, (3, 256))
    data = film(stored, PhotometricInterpretation="PALETTE COLOR")
    for name, channel in zip(("Red", "Green", "Blue"), entries, strict=True):
        data.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [256, 0, bits])
        values = channel.astype("u1") if bits == 8 else (channel * 257).astype("<u2")
        data.add_new(f"{name}PaletteColorLookupTableData", "OW", values.tobytes())
    np.testing.assert_array_equal(decoded(data).pixels, entries.T[stored])


@pytest.mark.parametrize("photometric", ["HSV", "CMYK", "ARGB", f"{SURNAME}^ANNA"])
def test_other_photometric_interpretations_are_refused_by_name(photometric):
    with pytest.raises(UserError, match=r"photometric interpretation (HSV|CMYK|ARGB|unknown)") as error:
        decoded(film(colours(), PhotometricInterpretation=photometric))
    assert SURNAME not in str(error.value)


# ---------------------------------------------------------------------------------------------------- transfer syntaxes


@pytest.mark.parametrize("syntax", [
    uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.DeflatedExplicitVRLittleEndian,
])  # fmt: skip
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, False), (16, True)])
def test_every_uncompressed_encoding_gives_the_same_pixels(syntax, bits, signed):
    stored = ramp(bits, signed)
    data = film(stored, bits=bits, syntax=syntax)
    np.testing.assert_array_equal(grey(data), stored if bits == 8 else own_range(stored))


def test_files_without_preamble_are_read_in_every_byte_order():
    stored = ramp(12)
    for implicit, little in ((True, True), (False, True), (False, False)):
        syntax = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        data = film(stored, bits=12, syntax=syntax)
        del data.file_meta
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, data, implicit_vr=implicit, little_endian=little)
        assert is_dicom(buffer.getvalue())
        assert not has_preamble(buffer.getvalue())
        np.testing.assert_array_equal(grey(buffer.getvalue()), own_range(stored))


def with_gdcm(data, name, tmp_path):
    """The data set's file, compressed by GDCM as its `gdcm.TransferSyntax` of this name."""
    gdcm = pytest.importorskip("gdcm")
    (tmp_path / "a.dcm").write_bytes(written(data))
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(tmp_path / "a.dcm"))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, name)))
    change.SetInput(reader.GetImage())
    if name == "JPEGLSNearLossless":
        codec = gdcm.JPEGLSCodec()
        codec.SetLossless(False)
        codec.SetLossyError(2)
        change.SetUserCodec(codec)
    assert change.Change()
    writer.SetFileName(str(tmp_path / "b.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return (tmp_path / "b.dcm").read_bytes()


LOSSLESS = ["JPEGLosslessProcess14", "JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless"]


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize(
    ("bits", "signed"), [(8, False), (10, False), (12, False), (14, False), (16, False), (12, True), (16, True)]
)
def test_lossless_compression_changes_no_pixel(tmp_path, name, bits, signed):
    stored = ramp(bits, signed)
    result = grey(with_gdcm(film(stored, bits=bits), name, tmp_path))
    np.testing.assert_array_equal(result, stored if bits == 8 else own_range(stored))


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_compression_changes_no_colour(tmp_path, name):
    np.testing.assert_array_equal(decoded(with_gdcm(film(colours()), name, tmp_path)).pixels, colours())


@pytest.mark.parametrize("name", ["JPEGBaselineProcess1", "JPEGExtendedProcess2_4", "JPEGLSNearLossless", "JPEG2000"])
def test_lossy_compression_changes_little(tmp_path, name):
    np.testing.assert_allclose(grey(with_gdcm(film(ramp(8)), name, tmp_path)).astype(int), ramp(8), atol=2)
    # GDCM calls subsampled YBR pixels RGB
    np.testing.assert_allclose(
        decoded(with_gdcm(film(colours()), name, tmp_path)).pixels.astype(int), colours(), atol=14
    )


@pytest.mark.parametrize("photometric", ["YBR_FULL_422", "YBR_FULL", "RGB"])
def test_colours_of_a_jpeg_are_right_whatever_the_header_says_of_them(photometric):
    buffer = io.BytesIO()
    Image.fromarray(colours()).save(buffer, "JPEG", quality=95, subsampling="4:4:4")
    data = film(colours(), syntax=uid.JPEGBaseline8Bit, PhotometricInterpretation=photometric)
    data.PixelData = encapsulate([buffer.getvalue()])
    np.testing.assert_allclose(decoded(data).pixels.astype(int), colours(), atol=6)


@pytest.mark.parametrize("photometric", ["YBR_RCT", "YBR_ICT"])
def test_colours_of_jpeg_2000_are_transformed_back(photometric):
    buffer = io.BytesIO()
    lossy = photometric == "YBR_ICT"
    Image.fromarray(colours()).save(buffer, "JPEG2000", irreversible=lossy, mct=1, no_jp2=True)
    syntax = uid.JPEG2000 if lossy else uid.JPEG2000Lossless
    data = film(colours(), syntax=syntax, PhotometricInterpretation=photometric)
    data.PixelData = encapsulate([buffer.getvalue()])
    np.testing.assert_allclose(decoded(data).pixels.astype(int), colours(), atol=2 if lossy else 0)


@pytest.mark.parametrize(
    ("syntax", "says"),
    [
        (uid.HTJ2KLossless, r"no installed decoder reads \(High-Throughput JPEG 2000.*4\.201\): install it with: pip"),
        (uid.MPEG2MPML, r"can't be read \(MPEG2 Main Profile.*4\.100\): export it uncompressed"),
        (uid.UID("1.2.840.113619.5.2"), r"can't be read \(transfer syntax unknown\)"),
    ],
)
def test_a_transfer_syntax_that_cannot_be_read_is_named(syntax, says):
    data = film(ramp(8), syntax=uid.JPEGBaseline8Bit)
    data.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    raw = written(data)
    old, new = uid.JPEGBaseline8Bit.encode(), syntax.encode()
    at = raw.index(old)
    size = len(new) + len(new) % 2
    header = raw[132 : at - 8] + b"\x02\x00\x10\x00UI" + size.to_bytes(2, "little") + new.ljust(size, b"\0")
    rest = raw[at + len(old) + len(old) % 2 :]
    grown = int.from_bytes(raw[140:144], "little") + size - len(old) - len(old) % 2
    data = raw[:132] + header[:8] + grown.to_bytes(4, "little") + header[12:] + rest
    with pytest.raises(UserError, match=says):
        decoded(data)


def test_12_bit_jpeg_is_refused_by_name():
    path = Path(pydicom.__file__).parent / "data/test_files/JPGExtended.dcm"
    if not path.is_file():
        pytest.skip("this pydicom comes without its test files")
    with pytest.raises(UserError, match=r"JPEG Extended .* of 12 bits, which no decoder reads"):
        decoded(path.read_bytes())


# ------------------------------------------------------------------------------------------------------------ geometry


@pytest.mark.parametrize(
    ("attributes", "shape"),
    [
        ({"PixelSpacing": [0.2, 0.1]}, (40, 30)),
        ({"PixelSpacing": [0.1, 0.2]}, (20, 60)),
        ({"ImagerPixelSpacing": [0.3, 0.2]}, (30, 30)),
        ({"PixelAspectRatio": [3, 2]}, (30, 30)),
        ({"PixelSpacing": [0.1, 0.1], "PixelAspectRatio": [2, 1]}, (20, 30)),
        ({"PixelSpacing": [0.1, 0.1005]}, (20, 30)),
        ({"PixelSpacing": [0.0, 0.1]}, (20, 30)),
    ],
)
def test_pixels_become_square(attributes, shape):
    assert grey(film(ramp(8), **attributes)).shape == shape
    assert decoded(film(colours(), **attributes)).pixels.shape == (*shape, 3)


def test_a_circle_is_round_again():
    y, x = np.mgrid[:60, :120]
    ellipse = ((((y - 30) * 2.0) ** 2 + (x - 60.0) ** 2) < 40**2).astype(np.uint8) * 200 + 20
    round_again = grey(film(ellipse, PixelSpacing=[0.4, 0.2]))
    y, x = np.mgrid[:120, :120]
    circle = ((y - 60.0) ** 2 + (x - 60.0) ** 2 < 40**2) * 200 + 20
    assert np.abs(round_again - circle).mean() < 5


def test_absurd_proportions_are_refused():
    with pytest.raises(UserError, match=r"pixels 20 times as high as wide \(PixelSpacing\)"):
        decoded(film(ramp(8), PixelSpacing=[2.0, 0.1]))


# ------------------------------------------------------------------------------------------------- who and what it is


def test_names_are_as_the_file_has_them():
    image = decoded(film(ramp(8)))
    assert (image.patient_id, image.image_id, image.study_id) == (f"{SURNAME}^7", "1.2.3.4", "1.2.3")
    bare = decoded(film(ramp(8), PatientID=None, StudyInstanceUID=None, SOPInstanceUID=""))
    assert (bare.patient_id, bare.image_id, bare.study_id) == (None, "", None)
    assert decoded(film(ramp(8), PatientID="  ")).patient_id is None


def test_identifiers_are_read_without_the_pixels():
    raw = written(film(ramp(12), bits=12))
    expected = {"SOPInstanceUID": "1.2.3.4", "StudyInstanceUID": "1.2.3", "PatientID": f"{SURNAME}^7"}
    assert read_identifiers(io.BytesIO(raw)) == expected
    assert read_identifiers(io.BytesIO(raw[:-1000])) == expected
    deflated = written(film(ramp(12), bits=12, syntax=uid.DeflatedExplicitVRLittleEndian))
    assert read_identifiers(io.BytesIO(deflated)) == expected
    with pytest.raises(UserError):
        read_identifiers(io.BytesIO(b"junk"))


def test_what_is_dicom_and_what_is_not():
    raw = written(film(ramp(8)))
    assert is_dicom(raw[:132])
    assert has_preamble(raw[:132])
    for other in (b"", b"\x89PNG\r\n\x1a\n" + bytes(200), b"PK\3\4" + bytes(200), b"P,Q\n" * 50, bytes(500), raw[:100]):
        assert not is_dicom(other)
        with pytest.raises(UserError):
            decoded(other)


def test_burnt_in_text_is_refused_unless_asked_for():
    data = film(ramp(8), BurnedInAnnotation="YES")
    with pytest.raises(UserError, match=r"BurnedInAnnotation YES.*--dicom\.burned-in keep"):
        decoded(data)
    assert grey(data, burned_in="keep").shape == (20, 30)
    assert grey(film(ramp(8), BurnedInAnnotation="NO")).shape == (20, 30)


def test_one_frame_of_an_enhanced_object_is_windowed_as_its_groups_say():
    stored = ramp(12)
    data = film(stored, bits=12, NumberOfFrames=1)
    voi, measures, shared = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    voi.WindowCenter, voi.WindowWidth = 1000, 300
    measures.PixelSpacing = [0.2, 0.1]
    shared.FrameVOILUTSequence, shared.PixelMeasuresSequence = pydicom.Sequence([voi]), pydicom.Sequence([measures])
    data.SharedFunctionalGroupsSequence = pydicom.Sequence([shared])
    assert grey(data).shape == (40, 30)
    del shared.PixelMeasuresSequence
    np.testing.assert_array_equal(grey(data), linear(stored, 1000, 300))


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ({"NumberOfFrames": 3}, r"multi-frame image of 3 frames \(Computed Radiography.*, modality CR\): expected one"),
        ({"PixelData": None}, r"no pixel data \(Computed Radiography Image Storage, modality CR\)"),
        ({"PixelData": b""}, "no pixel data"),
        ({"PixelData": None, "FloatPixelData": bytes(2400)}, "floating-point"),
        ({"PixelData": None, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.33", "Modality": "SR"}, "Comprehensive SR.*SR"),
        (
            {"PixelData": None, "SOPClassUID": "1.2.3", "Modality": f"{SURNAME}^X"},
            "unknown SOP class, modality unknown",
        ),
        ({"Rows": 21}, "damaged or cut short"),
        ({"Rows": 19}, "600 bytes of pixels, expected 570 for 30x19 pixels"),
        ({"Columns": 29}, "its header is wrong"),
        ({"Rows": 0}, "30x0 pixels"),
        ({"Rows": 60_000, "Columns": 60_000}, f"60000x60000 pixels are more than {MAX_PIXELS}"),
        ({"BitsAllocated": 32}, "pixels of 32 bits"),
        ({"BitsStored": 9}, "contradict each other"),
        ({"HighBit": 8}, "contradict each other"),
        ({"SamplesPerPixel": 3}, "its header is wrong|damaged"),
        ({"PhotometricInterpretation": None}, "photometric interpretation missing"),
        ({"Rows": None}, "damaged or cut short"),
        ({"WindowCenter": 100, "WindowWidth": 0.5}, "Window Width"),
        ({"WindowCenter": 5000, "WindowWidth": 10}, r"same value \(0\) under its window"),
    ],
)
def test_what_cannot_be_used_is_refused_in_words(attributes, says):
    with pytest.raises(UserError, match=says) as error:
        decoded(film(ramp(8), **attributes))
    assert "\n" not in str(error.value)
    assert SURNAME not in str(error.value)


def test_constant_pixels_are_no_film():
    with pytest.raises(UserError, match=r"every pixel has the same value \(7\)"):
        decoded(film(np.full((20, 30), 7, np.uint16), bits=12))
    with pytest.raises(UserError, match=r"every pixel has the same value \(7, 8, 9\)"):
        decoded(film(np.full((20, 30, 3), (7, 8, 9), np.uint8)))


def test_blank_padding_behind_the_pixels_does_no_harm():
    stored = ramp(12)
    data = film(stored, bits=12)
    data.PixelData += bytes(128)
    np.testing.assert_array_equal(grey(data), own_range(stored))


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian])
def test_a_file_that_ends_anywhere_is_refused(syntax):
    raw = written(film(ramp(12), bits=12, syntax=syntax))
    for end in range(0, len(raw) - 2, 13):
        with pytest.raises(UserError):
            decoded(raw[:end])


@pytest.mark.parametrize("name", [*LOSSLESS, "JPEGBaselineProcess1", "JPEGLSNearLossless"])
def test_a_compressed_file_that_ends_anywhere_is_refused(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    raw = with_gdcm(film(noise), name, tmp_path)
    for end in range(0, len(raw) - 12, 37):
        with pytest.raises(UserError):
            decoded(raw[:end])


@pytest.mark.parametrize(
    "name", ["JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "JPEGBaselineProcess1"]
)
def test_a_header_that_lies_about_compressed_pixels_is_noticed_before_a_decoder_sees_them(tmp_path, name):
    data = pydicom.dcmread(io.BytesIO(with_gdcm(film(ramp(8)), name, tmp_path)))
    data.Rows = 10
    with pytest.raises(UserError, match="the header says 30x10 pixels of 1 samples, what is compressed has 30x20 of 1"):
        decoded(data)


def test_a_deflated_bomb_is_refused_before_it_unpacks():
    raw = written(film(ramp(8), syntax=uid.DeflatedExplicitVRLittleEndian))
    end = 144 + int.from_bytes(raw[140:144], "little")
    squeeze = zlib.compressobj(1, wbits=-15)
    bomb = b"".join(squeeze.compress(bytes(1 << 24)) for _ in range(14)) + squeeze.flush()
    assert len(bomb) < 2_000_000
    with pytest.raises(UserError, match="unpacks to more than"):
        decoded(raw[:end] + bomb)


def test_damaged_files_lead_to_user_errors_or_to_valid_images_and_to_no_noise(tmp_path, capfd):
    """Bytes changed, cut out and put in, mostly in the header; 2,000 files. Thousands more were tried by hand."""
    rng = np.random.default_rng(0)
    whole = [
        written(film(ramp(12), bits=12, WindowCenter=100, WindowWidth=50, PixelSpacing=[0.1, 0.2])),
        written(film(ramp(12), bits=12, syntax=uid.ImplicitVRLittleEndian, VOILUTSequence=lut(range(256), 0, 8))),
        written(film(colours(), syntax=uid.ExplicitVRBigEndian)),
        written(film(ramp(8), syntax=uid.DeflatedExplicitVRLittleEndian)),
        *(with_gdcm(film(ramp(12), bits=12), name, tmp_path) for name in ("JPEGLSLossless", "JPEG2000", "RLELossless")),
        with_gdcm(film(ramp(12), bits=12), "JPEGLosslessProcess14_1", tmp_path),
    ]
    outcomes = Counter()
    capfd.readouterr()
    for i in range(2000):
        data = bytearray(whole[i % len(whole)])
        for at in rng.integers(0, min(len(data), 1200), rng.integers(1, 4)):
            kind = rng.integers(4)
            if kind == 0:
                del data[at : at + rng.integers(1, 20)]
            elif kind == 1:
                data[at:at] = rng.bytes(rng.integers(1, 20))
            else:
                data[at : at + 1] = rng.bytes(1)
        try:
            image = decode_dicom(bytes(data), CONFIG)
            assert image.pixels.dtype == np.uint8
            assert image.pixels.shape[2] in (1, 3)
            outcomes["decoded"] += 1
        except UserError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 300
    assert capfd.readouterr() == ("", "")


def test_a_file_over_which_gdcm_ends_its_process_is_refused_and_the_next_one_decoded(tmp_path):
    """Without its table of Huffman codes: an exception of C++ that nobody catches."""
    stored = ramp(8)
    raw = with_gdcm(film(stored), "JPEGLosslessProcess14", tmp_path)
    damaged = raw.replace(b"\xff\xc4", b"\x86\xc4", 1)
    assert damaged != raw
    for _ in range(3):
        with pytest.raises(UserError, match="over which the decoder broke down"):
            decoded(damaged)
        np.testing.assert_array_equal(grey(raw), stored)


def test_pixels_that_gdcm_calls_corrupt_but_gives_all_the_same_are_refused(tmp_path, capfd):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    raw = bytearray(with_gdcm(film(noise), "JPEGLosslessProcess14_1", tmp_path))
    raw[-600:-500] = b"\xab" * 100
    capfd.readouterr()
    with pytest.raises(UserError, match="GDCM finds them corrupt"):
        decoded(bytes(raw))
    assert capfd.readouterr() == ("", "")


def test_threads_decode_as_one_does_and_warnings_stay_inside():
    data = film(ramp(12), bits=12)
    data.PixelData += bytes(128)  # pydicom warns of it
    raw = written(data)
    expected = decode_dicom(raw, CONFIG).pixels
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ThreadPoolExecutor(8) as pool:
            for image in pool.map(lambda _: decode_dicom(raw, CONFIG), range(100)):
                np.testing.assert_array_equal(image.pixels, expected)


def test_pydicoms_log_is_quiet():
    decoded(film(ramp(8)))
    assert not logging.getLogger("pydicom").isEnabledFor(logging.CRITICAL)


@pytest.mark.parametrize("missing", ["pydicom", "torch"])
def test_neither_pydicom_nor_torch_is_needed_to_import_it(tmp_path, missing):
    (tmp_path / "x.dcm").write_bytes(written(film(ramp(8))))
    code = f"""
import sys
sys.modules[{missing!r}] = None
from vaegan.dicom import decode_dicom
from vaegan.importers.base import DicomConfig
try:
    decode_dicom(open({str(tmp_path / "x.dcm")!r}, "rb").read(), DicomConfig())
    print("decoded")
except ValueError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert ("pip install 'augray[dicom]'" in said) if missing == "pydicom" else said == "decoded\n"


def test_without_gdcm_the_transfer_syntax_and_the_extra_are_named(tmp_path):
    path = tmp_path / "x.dcm"
    path.write_bytes(with_gdcm(film(ramp(8)), "JPEGLosslessProcess14_1", tmp_path))
    code = f"""
import sys
sys.modules["gdcm"] = None
from vaegan.dicom import decode_dicom
from vaegan.importers.base import DicomConfig
try:
    decode_dicom(open({str(path)!r}, "rb").read(), DicomConfig())
except ValueError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "no installed decoder reads (JPEG Lossless" in said
    assert "pip install 'augray[dicom]'" in said


def test_pydicoms_own_test_files_are_decoded_or_refused_in_words():
    folder = Path(pydicom.__file__).parent / "data/test_files"
    outcomes = Counter()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size < 2_000_000):
        try:
            decode_dicom(path.read_bytes(), CONFIG)
            outcomes["decoded"] += 1
        except UserError:
            outcomes["refused"] += 1
    if not outcomes:
        pytest.skip("this pydicom comes without its test files")
    assert outcomes["decoded"] > 50
