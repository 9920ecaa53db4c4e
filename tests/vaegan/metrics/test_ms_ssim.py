import numpy as np
import pytest
import torch
from pytorch_msssim import ms_ssim as reference

from vaegan.metrics.ms_ssim import WEIGHTS, draw_pairs, ms_ssim, pair_similarities, scale_weights


def pictures(count, height=192, width=192, channels=1, seed=0):
    """Smooth shapes and some noise: alike at coarse scales, unlike at fine ones."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = rng.uniform(2, 9, size=(count, channels, 2))
    smooth = np.sin(waves[..., 0, None, None] * x + rng.uniform(0, 3)) * np.cos(waves[..., 1, None, None] * y)
    noisy = 120 + 90 * smooth + rng.normal(0, 15, smooth.shape)
    return noisy.clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def by_library(x, y, **options):
    """The library in float64 throughout: its own window is float32, whose sum misses 1 by enough to move 1e-6."""
    planes = [torch.from_numpy(np.ascontiguousarray(v)).permute(0, 3, 1, 2).double() for v in (x, y)]
    taps = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    window = (taps / taps.sum()).reshape(1, 1, 1, 11).repeat(x.shape[3], 1, 1, 1)
    return reference(*planes, data_range=255, size_average=False, **{"win": window} | options).numpy()


@pytest.mark.parametrize(("height", "width", "channels"), [(192, 192, 1), (256, 192, 3), (177, 203, 1), (161, 170, 3)])
def test_equals_pytorch_msssim(height, width, channels):
    x, y = pictures(5, height, width, channels, 0), pictures(5, height, width, channels, 1)
    np.testing.assert_allclose(ms_ssim(x, y), by_library(x, y), rtol=1e-9)


def test_with_the_scales_of_a_small_image_it_equals_the_library_given_their_weights(monkeypatch):
    x, y = pictures(3, seed=0), pictures(3, seed=1)
    three = scale_weights(64)
    assert len(three) == 3
    assert sum(three) == pytest.approx(sum(WEIGHTS))
    monkeypatch.setattr("vaegan.metrics.ms_ssim.scale_weights", lambda _side: three)
    np.testing.assert_allclose(ms_ssim(x, y), by_library(x, y, weights=three), rtol=1e-9)


def test_number_of_scales_is_what_the_window_fits_into():
    sides = [11, 20, 21, 40, 41, 64, 128, 160, 161, 256]
    assert [len(scale_weights(side)) for side in sides] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert scale_weights(256) == pytest.approx(WEIGHTS)
    with pytest.raises(ValueError, match="10 pixels"):
        scale_weights(10)


def test_equal_images_have_one_and_the_order_of_a_pair_or_of_the_pairs_is_without_effect():
    x, y = pictures(70, 64, 64, seed=0), pictures(70, 64, 64, seed=1)
    np.testing.assert_allclose(ms_ssim(x, x), 1)
    whole = ms_ssim(x, y)
    np.testing.assert_allclose(whole, ms_ssim(y, x))
    np.testing.assert_allclose(whole[::-1], ms_ssim(x[::-1], y[::-1]))
    np.testing.assert_allclose(whole[:1], ms_ssim(x[:1], y[:1]))
    assert ((whole >= 0) & (whole < 1)).all()


def test_inverted_images_have_zero_and_not_nan():
    x = pictures(4, 64, 64)
    assert ms_ssim(x, 255 - x) == pytest.approx(0)


def test_a_set_that_repeats_itself_is_more_alike_than_one_that_does_not():
    varied = pictures(60, 64, 64)
    repeated = np.clip(varied[:2][np.arange(60) % 2].astype(int) + 3, 0, 255).astype(np.uint8)
    pairs = draw_pairs(np.zeros((60, 0), np.uint8), np.arange(60), 100, 0)
    assert (
        pair_similarities(varied.__getitem__, pairs).mean()
        < 0.8 * pair_similarities(repeated.__getitem__, pairs).mean()
    )


def test_pairs_share_a_class_but_no_patient_and_no_row():
    rng = np.random.default_rng(1)
    labels = np.eye(3, dtype=np.uint8)[rng.integers(0, 3, 301)]
    patients = np.arange(301) // 4
    pairs = draw_pairs(labels, patients, 1000, seed=2)
    assert 120 < len(pairs) <= 150
    assert len(np.unique(pairs)) == pairs.size
    assert (labels[pairs[:, 0]] == labels[pairs[:, 1]]).all()
    assert (patients[pairs[:, 0]] != patients[pairs[:, 1]]).all()
    assert (draw_pairs(labels, patients, 1000, seed=2) == pairs).all()
    assert len(draw_pairs(labels, patients, 7, seed=2)) == 7
    assert len(draw_pairs(labels[:1], patients[:1], 7, seed=2)) == 0


def test_other_types_and_shapes_are_refused():
    x = pictures(2, 64, 64)
    with pytest.raises(ValueError, match="float64"):
        ms_ssim(x.astype(float), x)
    with pytest.raises(ValueError, match="both alike"):
        ms_ssim(x, x[:1])
