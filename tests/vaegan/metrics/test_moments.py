import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from vaegan.metrics.moments import Moments, ledoit_wolf_intensity


def features(count, dim=6, seed=0):
    return np.random.default_rng(seed).normal(3, 2, size=(count, dim)).astype(np.float32)


@pytest.mark.parametrize("cuts", [[1], [40], [10, 11, 90], [99]])
def test_moments_of_parts_merge_to_the_moments_of_the_whole(cuts):
    x = features(100)
    merged, *rest = [Moments.of(part) for part in np.split(x, cuts)]
    for part in rest:
        merged = merged.merge(part)
    assert merged.count == 100
    np.testing.assert_allclose(merged.mean, x.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(merged.covariance, np.cov(x, rowvar=False), rtol=1e-10)


def test_merging_does_not_depend_on_the_order():
    a, b = Moments.of(features(30)), Moments.of(features(70, seed=1))
    np.testing.assert_allclose(a.merge(b).scatter, b.merge(a).scatter, rtol=1e-12)


def test_more_rows_than_are_read_at_a_time_give_numpys_covariance():
    x = features(10_000, dim=3)
    np.testing.assert_allclose(Moments.of(x).covariance, np.cov(x, rowvar=False), rtol=1e-10)


def test_a_mean_far_from_zero_costs_no_digits():
    x = np.random.default_rng(0).normal(size=(1000, 2))
    np.testing.assert_allclose(Moments.of(x + 1e8).covariance, np.cov(x, rowvar=False), rtol=1e-6)


def test_the_shrunk_covariance_is_scikit_learns_but_for_n_minus_one():
    x = features(20, dim=30)
    theirs = LedoitWolf().fit(x.astype(np.float64))  # divides by N
    ours = Moments.of(x).shrunk_covariance(ledoit_wolf_intensity(x))
    np.testing.assert_allclose(ours * 19 / 20, theirs.covariance_, rtol=1e-9)
    assert np.linalg.eigvalsh(ours).min() > 0  # though 20 rows span only 19 of the 30 directions


def test_one_row_has_a_mean_but_no_covariance():
    moments = Moments.of(features(1))
    assert moments.count == 1
    with pytest.raises(ValueError, match="at least 2"):
        _ = moments.covariance
