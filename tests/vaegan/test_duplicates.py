import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from vaegan.duplicates import components, correlation, exact_pairs, find_pairs, near_pairs, thumbnail
from vaegan.images import perceptual_hash, pixel_hash, resize
from vaegan.phantom import PhantomConfig, phantom


@pytest.fixture(scope="module")
def films():
    """One film of each of 60 patients, (60, 128, 128, 1)."""
    images = phantom(PhantomConfig(patients=60), size=128, seed=0)
    return images.pixels[np.unique(images.patient_id.astype(str), return_index=True)[1]]


def jpeg(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


CHANGES = {
    "resaved": lambda image: jpeg(image, 30),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "smaller and resaved": lambda image: jpeg(image.resize((64, 64)), 75),
    "film curve": lambda image: image.point([round(255 * (v / 255) ** 1.2) for v in range(256)]),
}


def search(pixels):
    hashes = np.array([perceptual_hash(p) for p in pixels], dtype=np.uint64)
    return find_pairs([pixel_hash(p) for p in pixels], hashes, np.array([thumbnail(p) for p in pixels]))


@pytest.mark.parametrize("change", CHANGES)
def test_every_changed_copy_is_found_and_no_two_patients_are_taken_for_one(films, change):
    changed = [np.asarray(CHANGES[change](Image.fromarray(film[..., 0])))[..., None] for film in films]
    pixels = np.array([resize(image, 64, 1) for image in [*films, *changed]])
    exact, near = search(pixels)
    assert len(exact) == 0
    assert {tuple(pair) for pair in near} == {(i, i + len(films)) for i in range(len(films))}


def test_exact_copies_are_paired_with_the_first_of_their_kind(films):
    pixels = np.concatenate([films[:5], films[2:3], films[2:3], films[:1]])
    exact, near = search(pixels)
    assert sorted(map(tuple, exact)) == [(0, 7), (2, 5), (2, 6)]
    assert len(near) == 0
    assert exact_pairs([]).shape == (0, 2)


def test_blocks_do_not_change_what_is_found():
    """Against all pairs the slow way, with more rows than one block has."""
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 1500, dtype=np.uint64)
    hashes[1000:1200] = hashes[:200] ^ (np.uint64(1) << rng.integers(0, 60, 200, dtype=np.uint64))
    thumbnails = rng.integers(0, 256, (1500, 32, 32), dtype=np.uint8)
    thumbnails[1000:1100] = thumbnails[:100]  # the other hundred are close in hash alone
    found = near_pairs(hashes, thumbnails)
    assert {tuple(pair) for pair in found} == {(i, i + 1000) for i in range(100)}


def test_components_join_chains():
    pairs = np.array([[0, 1], [1, 4], [2, 3]])
    group = components(6, pairs)
    assert group[0] == group[1] == group[4] != group[2] == group[3] != group[5]
    assert len(set(components(3, np.empty((0, 2), dtype=np.int64)))) == 3


def test_only_the_rows_asked_for_are_compared_and_they_keep_their_numbers(films):
    pixels = np.concatenate([films[:6], films[:2]])
    hashes = np.array([perceptual_hash(p) for p in pixels], dtype=np.uint64)
    thumbnails = np.array([thumbnail(p) for p in pixels])
    assert {tuple(pair) for pair in near_pairs(hashes, thumbnails)} == {(0, 6), (1, 7)}
    assert {tuple(pair) for pair in near_pairs(hashes, thumbnails, rows=np.array([1, 2, 6, 7]))} == {(1, 7)}
    assert near_pairs(hashes, thumbnails, rows=np.array([], dtype=np.int64)).shape == (0, 2)


def test_thumbnails_may_lie_in_a_file(films, tmp_path):
    pixels = np.concatenate([films[:6], films[:2]])
    hashes = np.array([perceptual_hash(p) for p in pixels], dtype=np.uint64)
    thumbnails = np.array([thumbnail(p) for p in pixels])
    thumbnails.tofile(tmp_path / "t")
    mapped = np.memmap(tmp_path / "t", dtype=np.uint8, mode="r", shape=thumbnails.shape)
    np.testing.assert_array_equal(near_pairs(hashes, mapped), near_pairs(hashes, thumbnails))


def test_correlation_is_blind_to_brightness_and_contrast_and_flat_images_correlate_with_nothing():
    a = np.random.default_rng(0).integers(0, 100, (3, 32, 32), dtype=np.uint8)
    np.testing.assert_allclose(correlation(a, a * 2 + 7), 1, atol=1e-3)
    np.testing.assert_allclose(correlation(a, 255 - a), -1, atol=1e-3)
    assert np.isfinite(correlation(a, np.full_like(a, 9))).all()
    expected = [np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a, a[::-1], strict=True)]
    np.testing.assert_allclose(correlation(a, a[::-1]), expected, atol=1e-5)
