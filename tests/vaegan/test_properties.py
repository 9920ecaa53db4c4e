"""Properties of `prepare` from end to end, for whatever Hypothesis comes up with."""

import io
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cluster.errors import UserError
from vaegan.images import decode, resize
from vaegan.preparation.config import PrepareConfig
from vaegan.preparation.pipeline import prepare
from vaegan.shards import read_manifest, read_split

quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
sides = st.integers(2, 40)


def images_of(dataset):
    """Image id to (pixels, class, patient, split)."""
    manifest, found = read_manifest(dataset), {}
    for split in manifest.splits:
        images = read_split(dataset, split)
        for i, name in enumerate(images.image_id):
            labels = tuple(c for c, on in zip(manifest.classes, images.labels[i], strict=True) if on)
            found[name] = (images.pixels[i].tobytes(), labels, images.patient_id[i], split)
    return found


def decoded(data):
    """(pixels or None, what is said if there are none)."""
    try:
        return decode(data), ""
    except UserError as error:
        return None, str(error)


def write(root, films, kind="png"):
    for i, film in enumerate(films):
        path = root / "AB"[i % 2] / f"p{i // 2}-{i}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(film).save(path)
    return root


@given(sides, sides, st.sampled_from(["png", "tif", "bmp"]), st.integers(0, 9), st.sampled_from([8, 13, 32]),
       st.sampled_from([1, 3]), st.booleans())  # fmt: skip
@quick
def test_pixels_of_lossless_files_of_any_size_are_those_that_pillow_gives(
    height, width, kind, seed, size, channels, colour
):
    rng = np.random.default_rng(seed)
    shape = (8, height, width, *([3] if colour else []))
    films = rng.integers(0, 256, shape, dtype=np.uint8)
    with tempfile.TemporaryDirectory() as work:
        root, out = write(Path(work) / "in", films, kind), Path(work) / "out"
        manifest = prepare(
            PrepareConfig(images=root, out=out, size=size, channels=channels, allow_one_class=True, num_workers=1,
                          leaks="keep", fractions=(1.0, 0.0, 0.0))
        )  # fmt: skip
        found = images_of(out)
    assert len(found) + manifest.rejects == 8
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    for i, film in enumerate(films):
        if f"p{i // 2}-{i}" not in found:
            continue  # of one value after cropping
        centre = (
            Image.fromarray(film).convert("L" if channels == 1 else "RGB").crop((left, top, left + side, top + side))
        )
        expected = centre if side == size else centre.resize((size, size), Image.Resampling.LANCZOS)
        pixels = np.frombuffer(found[f"p{i // 2}-{i}"][0], np.uint8)
        np.testing.assert_array_equal(pixels, np.asarray(expected).ravel())


@given(sides, sides, st.sampled_from(["crop", "pad", "squash"]), st.sampled_from([1, 3]), st.integers(8, 40))
@quick
def test_every_aspect_gives_the_size_asked_for(height, width, aspect, channels, size):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    small = resize(pixels, size, channels, aspect)
    assert small.shape == (size, size, channels)
    assert small.dtype == np.uint8
    if aspect == "pad" and height != width:
        first, last = (small[0], small[-1]) if width > 2 * height else (small[:, 0], small[:, -1])
        if max(height, width) > 2 * min(height, width):
            assert not first.any() or not last.any()


@given(st.integers(0, 5), st.integers(6, 30), st.booleans())
@quick
def test_a_dataset_of_a_dataset_has_its_pixels_labels_names_and_splits(seed, count, again):
    films = np.random.default_rng(seed).integers(0, 256, (count, 12, 12), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as work:
        first, second = Path(work) / "first", Path(work) / "second"
        config = PrepareConfig(
            images=write(Path(work) / "in", films),
            out=first,
            size=8,
            num_workers=1,
            patient_regex=r"p(\d+)-",
            seed=seed,
        )
        prepare(config)
        prepare(PrepareConfig(images=first, out=second, size=8, num_workers=1, val="keep", seed=seed + again))
        assert images_of(second) == images_of(first)
        before, after = read_manifest(first).splits, read_manifest(second).splits
        assert after == before


@given(st.integers(0, 3), st.floats(0.05, 1), st.integers(20, 40))
@quick
def test_a_subset_is_whole_patients_and_what_is_left_out_is_counted(seed, share, patients):
    films = np.random.default_rng(seed).integers(0, 256, (patients * 2, 9, 9), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "out"
        config = PrepareConfig(
            images=write(Path(work) / "in", films), out=out, size=8, num_workers=1, patient_regex=r"p(\d+)-", seed=seed,
            subset=share, fractions=(1.0, 0.0, 0.0),
        )  # fmt: skip
        taken = sum(_takes(seed, share, str(p)) for p in range(patients))
        if taken:
            manifest = prepare(config)
            found = images_of(out)
            assert len(found) == 2 * taken
            assert {patient for _, _, patient, _ in found.values()} == {
                str(p) for p in range(patients) if _takes(seed, share, str(p))
            }
            assert sum(manifest.report["left_out"].values()) == 2 * (patients - taken)


def _takes(seed, share, patient):
    """Independent of the code under test: sha256 of seed and name, as a fraction of 1."""
    import hashlib

    return share >= 1 or int(hashlib.sha256(f"{seed} {patient}".encode()).hexdigest()[:16], 16) / 2**64 < share


@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"GIF89a", b"BM", b"RIFF"]),
)
@settings(max_examples=300, deadline=None)
def test_no_bytes_make_the_decoder_raise_anything_but_a_sentence(data, magic):
    array, told = decoded(magic + data)
    if array is None:
        assert told
        assert "\n" not in told
        return
    assert array.dtype == np.uint8
    assert array.ndim == 3


@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.sampled_from(["L", "RGB", "RGBA", "LA", "P", "1", "I;16", "F", "CMYK", "YCbCr"]),
)
@settings(max_examples=100, deadline=None)
def test_every_mode_that_tiff_or_png_has_becomes_grey_or_colour(height, width, mode):
    rng, buffer = np.random.default_rng(height), io.BytesIO()
    image = Image.fromarray(rng.integers(0, 256, (height, width), dtype=np.uint8))
    image = image.convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
    image.save(buffer, "TIFF" if mode in ("F", "CMYK", "YCbCr", "I;16") else "PNG")
    array, told = decoded(buffer.getvalue())
    if array is None:
        assert "same value" in told
        return
    assert array.shape == (height, width, 1 if mode in ("L", "LA", "1", "I;16", "F") else 3)
