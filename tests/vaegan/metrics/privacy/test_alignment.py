import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from vaegan.metrics.privacy import alignment
from vaegan.metrics.privacy.alignment import align, detail


def textures(count, seed=0, size=64):
    """Images with detail of all sizes, each its own: uint8 (count, size, size, 1)."""
    rng = np.random.default_rng(seed)
    scale = size / 64
    noise = rng.normal(size=(count, size, size))
    layers = [gaussian_filter(noise, (0, s * scale, s * scale)) for s in (1.5, 3, 8)]
    mixed = sum(layer / layer.std() for layer in layers)
    return np.clip(128 + 30 * mixed, 0, 255).astype(np.uint8)[..., None]


def cropped(images, left, top, side):
    """The square at (left, top), enlarged to 64 px."""
    parts = [Image.fromarray(image[top : top + side, left : left + side, 0]) for image in images]
    return np.stack([np.asarray(part.resize((64, 64), Image.Resampling.BICUBIC)) for part in parts])[..., None]


def noisy(images, sigma, seed=1):
    noise = np.random.default_rng(seed).normal(0, sigma, images.shape)
    return np.clip(np.round(images + noise), 0, 255).astype(np.uint8)


CHANGES = {
    "itself": lambda x: x,
    "noise": lambda x: noisy(x, 10),
    "mirrored": lambda x: x[:, :, ::-1],
    "darker": lambda x: (x * 0.5 + 20).astype(np.uint8),
    "shaded": lambda x: np.clip(x + np.linspace(-40, 40, 64)[None, :, None, None], 0, 255).astype(np.uint8),
    "corner": lambda x: cropped(x, 0, 0, 54),
    "off-centre crop, mirrored, noisy": lambda x: noisy(cropped(x, 9, 3, 52)[:, :, ::-1], 10),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_recognised_and_another_image_is_not(change):
    images = textures(12)
    changed = detail(CHANGES[change](images))
    of_copies = align(changed, detail(images)).correlation
    of_others = align(changed, detail(np.roll(images, 1, axis=0))).correlation
    assert of_copies.min() > 0.9
    assert of_others.max() < 0.6


def test_a_crop_tells_how_much_it_was_enlarged():
    images = textures(6)
    found = align(detail(cropped(images, 5, 7, 52)), detail(images))
    np.testing.assert_allclose(found.zoom, 64 / 52, rtol=1e-6)
    np.testing.assert_allclose(align(detail(images), detail(images)).zoom, 1)


def test_mirrors_are_told():
    images = detail(textures(6))
    assert not align(images, images).mirrored.any()
    assert align(images, images[:, :, ::-1]).mirrored.all()


def test_fourier_transforms_change_nothing():
    """Against sliding the part over the whole, position by position, for one size."""
    part, whole = detail(textures(2))
    side = alignment.SMALLEST - 2 * alignment.SLACK
    best = -1.0
    for size in range(64, alignment.SMALLEST - 1, -2):
        shrink = np.asarray(Image.fromarray(np.eye(64, dtype=np.float32)).resize((64, size), Image.Resampling.BILINEAR))
        small = (shrink @ part @ shrink.T)[
            alignment.SLACK : size - alignment.SLACK, alignment.SLACK : size - alignment.SLACK
        ]
        side = len(small)
        for template in (small, small[:, ::-1]):
            for top in range(64 - side + 1):
                for left in range(64 - side + 1):
                    window = whole[top : top + side, left : left + side]
                    best = max(best, np.corrcoef(template.ravel(), window.ravel())[0, 1])
    found = alignment._as_part(part[None], whole[None]).correlation
    assert found == pytest.approx(best, abs=1e-5)


def test_a_pair_depends_on_no_other_pair(monkeypatch):
    a, b = detail(textures(10)), detail(textures(10, seed=1))
    together = align(a, b).correlation
    monkeypatch.setattr(alignment, "_PAIRS", 3)
    assert np.array_equal(align(a, b).correlation, together)
    assert np.array_equal(align(a[4:5], b[4:5]).correlation, together[4:5])


@pytest.mark.parametrize("size", [28, 96, 256])
def test_images_of_any_size_are_compared(size):
    images = textures(4, size=256)
    sized = np.stack(
        [np.asarray(Image.fromarray(image[..., 0]).resize((size, size), Image.Resampling.BOX)) for image in images]
    )[..., None]
    assert align(detail(sized), detail(images)).correlation.min() > 0.9


def test_blank_images_are_like_nothing():
    blank = np.full((2, 64, 64, 1), 7, np.uint8)
    assert not align(detail(blank), detail(textures(2))).correlation.any()
    assert not align(detail(textures(2)), detail(blank)).correlation.max() > 0.3
