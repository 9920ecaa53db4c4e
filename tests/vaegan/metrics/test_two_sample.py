import numpy as np
import pytest
from scipy.stats import norm

from vaegan.metrics.two_sample import two_sample_auc


def gaussians(count, seed, dim=24, shift=0.0):
    rows = np.random.default_rng(seed).normal(size=(count, dim))
    rows[:, 0] += shift
    return rows


def test_two_sets_of_one_distribution_have_half():
    found = [two_sample_auc(gaussians(150, 2 * seed), gaussians(120, 2 * seed + 1), seed=seed) for seed in range(60)]
    aucs = [each.auc for each in found]
    assert np.mean(aucs) == pytest.approx(0.5, abs=0.02)
    assert np.std(aucs) == pytest.approx(np.mean([each.standard_error for each in found]), rel=0.25)


@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0])
def test_shifted_gaussians_have_nearly_the_best_possible_area(shift):
    found = two_sample_auc(gaussians(6000, 0), gaussians(6000, 1, shift=shift)).auc
    assert found == pytest.approx(norm.cdf(shift / np.sqrt(2)), abs=0.02)


def test_fewer_rows_than_features_still_tell_sets_apart():
    found = two_sample_auc(gaussians(60, 0, dim=200), gaussians(60, 1, dim=200, shift=4.0)).auc
    assert found > 0.9


def test_a_patient_is_not_recognised_by_its_other_films():
    patients = np.repeat(np.arange(15), 12)
    real = gaussians(15, 0, dim=60)[patients] + 0.01 * gaussians(180, 1, dim=60)
    synthetic = gaussians(180, 2, dim=60)
    by_film = np.mean([two_sample_auc(real, synthetic, seed=seed).auc for seed in range(5)])
    by_patient = np.mean([two_sample_auc(real, synthetic, groups=patients, seed=seed).auc for seed in range(5)])
    assert by_film > by_patient + 0.1
    assert by_patient < 0.65


def test_scale_and_offset_of_the_features_are_without_effect():
    x, y = gaussians(80, 0), gaussians(90, 1, shift=1.0)
    assert two_sample_auc(1000 * x + 7, 1000 * y + 7).auc == pytest.approx(two_sample_auc(x, y).auc, abs=1e-6)


def test_too_few_rows_are_refused():
    with pytest.raises(ValueError, match="4 real and 20 synthetic"):
        two_sample_auc(gaussians(4, 0), gaussians(20, 1))
