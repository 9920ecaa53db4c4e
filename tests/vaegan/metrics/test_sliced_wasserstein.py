import time

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import wasserstein_distance

from vaegan.metrics.sliced_wasserstein import laplacian_pyramid, sliced_wasserstein, wasserstein_1d
from vaegan.phantom import PhantomConfig, phantom


@pytest.fixture(scope="module")
def films():
    """Two halves of one distribution, 64 made-up films each at 64 pixels, in random order."""
    pixels = phantom(PhantomConfig(patients=100), size=64, seed=0).pixels
    pixels = pixels[np.random.default_rng(0).permutation(len(pixels))]
    return pixels[:64], pixels[64:128]


def as_pixels(values):
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def blurred(pixels, sigma):
    return as_pixels(gaussian_filter(pixels.astype(float), (0, sigma, sigma, 0)))


def noisy(pixels, std):
    return as_pixels(pixels + np.random.default_rng(1).normal(0, std, pixels.shape))


def brighter(pixels, shift):
    return as_pixels(pixels.astype(float) + shift)


def flatter(pixels, loss):
    return as_pixels((pixels.astype(float) - 128) * (1 - loss) + 128)


def fewer_modes(pixels, lost):
    return np.resize(pixels[: len(pixels) - lost], pixels.shape)


@pytest.mark.parametrize(
    ("worse", "amounts"),
    [
        (blurred, (0.5, 1, 2)),
        (noisy, (3, 6, 12)),
        (brighter, (5, 10, 30)),
        (flatter, (0.1, 0.3, 0.5)),  # the reference's normalisation would not see this one
        (fewer_modes, (56, 62, 63)),  # 8, 2 and 1 different images
    ],
)
def test_it_grows_with_each_fault_and_is_least_for_two_halves_of_one_distribution(films, worse, amounts):
    real, synthetic = films
    values = [sliced_wasserstein(real, pixels) for pixels in (synthetic, *(worse(synthetic, a) for a in amounts))]
    assert values == sorted(values)
    assert values[-1] > 3 * values[0]


def test_the_order_of_the_images_is_without_effect(films):
    real, synthetic = films
    order = np.random.default_rng(2).permutation(len(real))
    assert sliced_wasserstein(real, real[order]) == pytest.approx(0, abs=1e-9)
    assert sliced_wasserstein(real[order], synthetic) == pytest.approx(sliced_wasserstein(real, synthetic), rel=1e-9)


def test_exchanging_sets_of_one_distribution_changes_only_the_unit(films):
    real, synthetic = films
    assert sliced_wasserstein(synthetic, real) == pytest.approx(sliced_wasserstein(real, synthetic), rel=0.05)


def test_one_seed_gives_one_value_and_seeds_differ_by_little(films):
    values = [sliced_wasserstein(*films, seed=seed) for seed in (0, 0, 1, 2, 3)]
    assert values[0] == values[1]
    assert 0 < np.std(values[1:]) < 0.1 * values[0]


def test_the_larger_set_is_cut_by_a_draw_from_all_of_it_that_a_seed_repeats(films):
    real, synthetic = films
    sorted_by_class = np.concatenate([real, brighter(real, 60)])
    both_classes = np.concatenate([synthetic[:20], brighter(synthetic[:20], 60)])
    drawn = sliced_wasserstein(sorted_by_class, both_classes)
    assert drawn == sliced_wasserstein(sorted_by_class, both_classes)
    assert drawn < 0.5 * sliced_wasserstein(sorted_by_class[:40], both_classes)


def test_a_line_has_the_distance_that_scipy_and_closed_forms_give():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 500)), rng.gamma(2, size=(2, 500))
    expected = [wasserstein_distance(*pair) for pair in zip(x, y, strict=True)]
    np.testing.assert_allclose(wasserstein_1d(x, y), expected, rtol=1e-12)
    np.testing.assert_allclose(wasserstein_1d(x, x[:, ::-1] - 3.5), 3.5, rtol=1e-12)
    np.testing.assert_allclose(wasserstein_1d(x, 3 * x), 2 * np.abs(x).mean(axis=1), rtol=1e-12)


def test_a_shift_in_brightness_moves_only_the_coarsest_level_and_there_by_what_a_closed_form_says():
    real = np.random.default_rng(0).integers(0, 200, (40, 16, 16, 1), dtype=np.uint8)  # one level: the image itself
    value = sliced_wasserstein(real, real + np.uint8(30), projections=2000)
    patches = np.lib.stride_tricks.sliding_window_view(real[..., 0], (7, 7), axis=(1, 2))
    # all projections move by 30/std * sum(direction), whose mean size is sqrt(2/pi) for a random direction (almost)
    assert value == pytest.approx(1000 * 30 / patches.std() * np.sqrt(2 / np.pi), rel=0.05)


def test_a_flat_image_is_in_the_coarsest_level_alone_up_to_its_edges():
    flat = laplacian_pyramid(np.full((1, 64, 64, 3), 77, dtype=np.uint8))
    assert [level.shape for level in flat] == [(1, 64, 64, 3), (1, 32, 32, 3), (1, 16, 16, 3)]
    assert not np.any(flat[0])  # at the edges neither
    assert not np.any(flat[1])
    assert np.all(flat[2] == 77)


def test_colour_and_sides_that_are_no_power_of_two_work(films):
    rng = np.random.default_rng(0)
    real, synthetic = (rng.integers(0, 256, (6, 28, 36, 3), dtype=np.uint8) for _ in range(2))
    real[..., 2] = synthetic[..., 2] = 0  # a channel without content
    assert np.isfinite(sliced_wasserstein(real, synthetic))
    assert [level.shape[1] for level in laplacian_pyramid(np.zeros((1, 100, 100, 1), np.uint8))] == [100, 50, 25]


def test_256_images_of_64_pixels_take_about_a_second_on_one_core(films):
    pixels = np.concatenate([*films, *films])
    started_s = time.process_time()
    sliced_wasserstein(pixels, pixels[::-1])
    assert time.process_time() - started_s < 3  # 0.6 where nothing else runs


@pytest.mark.parametrize(
    ("real", "synthetic", "message"),
    [
        (np.zeros((4, 32, 32, 1), np.float32), np.zeros((4, 32, 32, 1), np.uint8), "real images are float32"),
        (np.zeros((4, 32, 32, 1), np.uint8), np.zeros((4, 32, 32), np.uint8), "expected uint8 \\(N, H, W, C\\)"),
        (np.zeros((4, 32, 32, 1), np.uint8), np.zeros((0, 32, 32, 1), np.uint8), "one image at least"),
        (np.zeros((4, 8, 8, 1), np.uint8), np.zeros((4, 8, 8, 1), np.uint8), "16 pixels or more"),
        (np.zeros((4, 32, 32, 1), np.uint8), np.zeros((4, 64, 64, 1), np.uint8), "resize one of them"),
    ],
)
def test_arrays_that_are_no_two_sets_of_images_are_refused_with_what_was_expected(real, synthetic, message):
    with pytest.raises(ValueError, match=message):
        sliced_wasserstein(real, synthetic)
