from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from vaegan.images import decode, resize
from vaegan.metrics.privacy import copies
from vaegan.metrics.privacy.alignment import detail
from vaegan.metrics.privacy.copies import Fingerprints, find_matches, similar_hashes, similar_layouts


def textures(count, seed=0):
    """Images with detail of all sizes, each its own: uint8 (count, 64, 64, 1)."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(count, 64, 64))
    layers = [gaussian_filter(noise, (0, sigma, sigma)) for sigma in (1.5, 3, 8)]
    mixed = sum(layer / layer.std() for layer in layers)
    return np.clip(128 + 30 * mixed, 0, 255).astype(np.uint8)[..., None]


def noisy(images, sigma):
    noise = np.random.default_rng(9).normal(0, sigma, images.shape)
    return np.clip(np.round(images + noise), 0, 255).astype(np.uint8)


def cropped(images, share):
    """A part of each image, another one each time, enlarged to the old size."""
    rng = np.random.default_rng(8)
    size = images.shape[1]
    side = round(size * (1 - share))
    result = []
    for image in images[..., 0]:
        top, left = rng.integers(0, size - side + 1, 2)
        part = Image.fromarray(image[top : top + side, left : left + side])
        result.append(np.asarray(part.resize((size, size), Image.Resampling.BICUBIC)))
    return np.stack(result)[..., None]


def matches(synthetic, real, patients=None, **neighbours):
    return find_matches(
        Fingerprints.of(synthetic),
        Fingerprints.of(real),
        np.arange(len(real)) if patients is None else patients,
        lambda rows: detail(synthetic[rows]),
        lambda rows: detail(real[rows]),
        neighbours,
    )


CHANGES = {
    "the same": lambda x: x,
    "noise": lambda x: noisy(x, 15),
    "mirror": lambda x: x[:, :, ::-1],
    "crop of 5 %": lambda x: cropped(x, 0.05),
    "crop of 15 %": lambda x: cropped(x, 0.15),
    "crop, mirror and noise": lambda x: noisy(cropped(x, 0.15)[:, :, ::-1], 8),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_traced_to_their_originals(change):
    real = textures(60)
    found = matches(CHANGES[change](real[:30]), real)
    assert np.array_equal(found.rows, np.arange(30))
    assert found.copied.all()
    assert found.same_pixels.all() == (change == "the same")


def test_other_images_are_no_copies():
    found = matches(textures(30, seed=1), textures(60))
    assert not found.copied.any()
    assert not found.same_pixels.any()


def test_an_image_that_is_like_two_patients_stands_out_for_neither_and_like_two_films_of_one_it_does():
    """The mean of two images: like both, and like nobody else."""
    real = textures(40)
    mixed = ((real[:1].astype(int) + real[1:2]) // 2).astype(np.uint8)
    found = matches(mixed, real)
    assert found.rows[0] in (0, 1)
    assert not found.copied[0]
    same_patient = np.maximum(np.arange(40) - 1, 0)
    assert matches(mixed, real, same_patient).gap[0] > found.gap[0] + 0.2


def test_nothing_stands_out_where_there_is_only_one_patient():
    real = textures(5)
    found = matches(noisy(real, 60), real, np.zeros(5, int))
    assert not found.gap.any()


def test_blank_images_are_copies_of_blank_ones_only():
    real = np.concatenate([textures(20), np.full((1, 64, 64, 1), 9, np.uint8)])
    found = matches(np.full((2, 64, 64, 1), [[[[9]]], [[[8]]]], np.uint8), real)
    assert found.copied.tolist() == [True, False]
    assert found.rows[0] == 20


def test_blocks_other_images_and_order_change_nothing(monkeypatch):
    real, synthetic = textures(50), np.concatenate([textures(9, seed=2), noisy(textures(50)[:9], 20)])
    whole = matches(synthetic, real)
    for name, value in (("_ROWS", 4), ("_COLUMNS", 7), ("TILE", 5)):
        monkeypatch.setattr(copies, name, value)
    blocks, alone = matches(synthetic, real), matches(synthetic[12:13], real)
    order = np.random.default_rng(0).permutation(50)
    moved = matches(synthetic, real[order])
    for other in (blocks, moved):
        np.testing.assert_allclose(other.alignment.correlation, whole.alignment.correlation, atol=1e-5)
        np.testing.assert_allclose(other.rival, whole.rival, atol=1e-5)
    assert np.array_equal(blocks.rows, whole.rows)
    assert np.array_equal(order[moved.rows], whole.rows)
    assert alone.rows[0] == whole.rows[12]


def test_hash_neighbours_are_those_of_all_pairs():
    rng = np.random.default_rng(0)
    real = Fingerprints(
        np.zeros(300, "S64"), rng.integers(0, 2**63, 300, np.uint64), np.zeros(300, np.uint64), np.zeros((300, 32, 32))
    )
    synthetic = real.take(np.arange(40))
    flips = np.uint64(1) << rng.integers(0, 60, (40, 6), dtype=np.uint64)
    changed = synthetic.hashes ^ np.bitwise_xor.reduce(flips, axis=1)
    changed[20:] = rng.integers(0, 2**63, 20, np.uint64)
    synthetic = Fingerprints(synthetic.pixel_hashes, changed, changed, synthetic.thumbnails)
    found = similar_hashes(synthetic, real)
    assert np.array_equal(found[:20, 0], np.arange(20))
    assert (found[20:] == -1).all()
    assert (found[:, 1:] == -1).all()


def test_layouts_find_any_part_of_an_image():
    real = Fingerprints.of(textures(200)).thumbnails
    for share in (0.03, 0.08, 0.12, 0.2, 0.25):
        parts = Fingerprints.of(cropped(textures(200)[:40], share)).thumbnails
        found = similar_layouts(parts, real)
        assert (found == np.arange(40)[:, None]).any(axis=1).mean() > 0.95, share
    assert (similar_layouts(real[:3], real[:5]) >= 0).sum() == 15  # fewer images than candidates


def test_a_search_of_the_callers_is_believed():
    """A copy that hashes and layouts miss is found through feature neighbours."""
    real = textures(300)
    turned = np.rot90(real[:1], axes=(1, 2))
    real = np.concatenate([real, turned])
    assert matches(turned, real, features=np.array([[300]])).proposed["features"][0]


def test_fingerprints_go_through_plain_arrays_and_blocks():
    images = textures(7)
    whole = Fingerprints.of(images)
    parts = Fingerprints.concatenate(
        [Fingerprints.of(images[:3]), Fingerprints.of(images[3:]), Fingerprints.of(images[:0])]
    )
    again = Fingerprints(**{name: value.copy() for name, value in parts.arrays().items()})
    for name, value in whole.arrays().items():
        assert np.array_equal(getattr(again, name), value)
        assert getattr(again, name).dtype == value.dtype


@pytest.fixture(scope="module")
def films(shared: Path):
    """260 films of as many of Kermany's patients at 64 px, (260, 64, 64, 1)."""
    files = sorted((shared / "data" / "kermany_cxr_224").glob("*.parquet"))
    table = pq.read_table(files[0], columns=["image", "patient_id"]).to_pydict()
    first = {
        patient: image for image, patient in zip(reversed(table["image"]), reversed(table["patient_id"]), strict=True)
    }
    return np.stack([resize(decode(first[patient]), 64, 1) for patient in sorted(first)[:260]])


def test_films_of_other_children_are_no_copies_and_changed_films_are(films):
    honest = matches(films[200:260], films[:200])
    assert not honest.copied.any()
    for change in CHANGES.values():
        found = matches(change(films[:30]), films[:200])
        assert np.mean(found.copied & (found.rows == np.arange(30))) >= 0.9
